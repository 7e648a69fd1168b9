"""Draw a picture of a prompt. The PNG carries the recipe that made it."""

from pathlib import Path

import typer

import clipguide
from clipguide.recipe import save_png


def main(quick: bool = False, out: Path = Path("generate.png")) -> None:
    """Draw a red fox."""
    draw = clipguide.TextToImage()
    (picture,) = draw("a red fox", seed=7, steps=4 if quick else 30)
    save_png(picture.image, picture.recipe, out, overwrite=True)
    print(f"{out}: guide {picture.guide_score:.3f}, judge {picture.judge_score:.3f}")


if __name__ == "__main__":
    typer.run(main)
