"""Objectives add and scale: CLIP's, a smoother picture, and one of your own in four lines."""

from pathlib import Path

import torch
import typer

import clipguide
from clipguide.images import contact_sheet


class Dark(clipguide.Objective):
    """The mean brightness of each image."""

    def __call__(self, image_B3HW, generators=None):
        return image_B3HW.flatten(1).mean(1)


def main(quick: bool = False, out: Path = Path("objectives.png")) -> None:
    """Steer a house down four objectives."""
    pipe = clipguide.load_pipeline("mini")
    house = clipguide.Similarity(clipguide.load_clip(), "a house")
    objectives = {
        "a house": house,
        "+ smooth": house + 0.1 * clipguide.TotalVariation(),
        "+ much smoother": house + 10 * clipguide.TotalVariation(),
        "+ dark": house + Dark(),
    }
    pictures = []
    for objective in objectives.values():
        noise = torch.Generator().manual_seed(0)
        with clipguide.steer(pipe, objective, strength=0.2):
            steps = 2 if quick else 30
            pictures += pipe("a house", num_inference_steps=steps, generator=noise).images
    contact_sheet(pictures, labels=list(objectives), columns=4).save(out)


if __name__ == "__main__":
    typer.run(main)
