"""A loop draws one prompt on four canvases, by the gradients of the guide and of the generator."""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet


def main(quick: bool = False, out: Path = Path("optimize.png")) -> None:
    """A red fox, as pixels, a spectrum, codes and latents."""
    names = ("pixels", "fourier", "vqgan", "latent")
    drawing = clipguide.Drawing(steps=2, cutouts=2) if quick else clipguide.Drawing()
    pictures = []
    for name in names:
        draw = clipguide.TextToCanvas(name)
        pictures += draw("a red fox", drawing, seed=0)
        print(f"{name}: judge {pictures[-1].judge_score:.3f}")
    sheet = contact_sheet([p.image for p in pictures], labels=list(names), columns=4)
    sheet.save(out)


if __name__ == "__main__":
    typer.run(main)
