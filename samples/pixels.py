"""No generator at all: the guide's gradient draws on bare pixels, in a loop of your own."""

from pathlib import Path

import torch
import typer

import clipguide
from clipguide.images import to_pil


def main(quick: bool = False, out: Path = Path("pixels.png")) -> None:
    """Optimise pixels towards a strawberry."""
    clip = clipguide.load_clip()
    views = clipguide.Cutouts(number=8)
    objective = clipguide.Similarity(clip, "a strawberry", views=views)
    objective += 2 * clipguide.TotalVariation()
    generator = torch.Generator().manual_seed(0)
    size = clip.image_size
    image_B3HW = 0.5 + 0.02 * torch.randn(1, 3, size, size, generator=generator)
    image_B3HW.requires_grad_()
    optimizer = torch.optim.Adam([image_B3HW], lr=0.02)
    for step in range(2 if quick else 200):
        loss = objective(image_B3HW, [generator]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        image_B3HW.data.clamp_(0, 1)
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    to_pil(image_B3HW)[0].save(out)


if __name__ == "__main__":
    typer.run(main)
