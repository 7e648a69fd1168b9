"""Steer a diffusers pipeline of your own, unmodified: asked for a car, led to a green one."""

from pathlib import Path

import torch
import typer

import clipguide
from clipguide.images import contact_sheet


def main(quick: bool = False, out: Path = Path("steer_diffusers.png")) -> None:
    """Draw a car without steering and with it."""
    pipe = clipguide.load_pipeline("mini")  # or DiffusionPipeline.from_pretrained(…)

    def draw():
        noise = torch.Generator().manual_seed(3)
        return pipe("a car", num_inference_steps=4 if quick else 30, generator=noise).images[0]

    plain = draw()
    with clipguide.steer(pipe, "a green car", strength=0.2) as steering:
        steered = draw()
    scores = [f"{s.guide_score_B.item():.3f}" for s in steering.report.trace if s.index % 5 == 0]
    print(f"the guide's score every five steps: {' '.join(scores)}")
    contact_sheet([plain, steered], labels=["a car", "to a green car"], columns=2).save(out)


if __name__ == "__main__":
    typer.run(main)
