"""Make a picture again from the recipe in its PNG, and compare the pixels."""

from pathlib import Path

import numpy as np
import typer

import clipguide
from clipguide.images import load
from clipguide.recipe import differences, read_png, save_png


def main(quick: bool = False, out: Path = Path("replay.png")) -> None:
    """Draw the second picture of a batch, then again from its file alone."""
    draw = clipguide.TextToImage()
    picture = draw("a yellow duck", count=2, seed=5, steps=2 if quick else 30)[1]
    save_png(picture.image, picture.recipe, out, overwrite=True)

    recipe = read_png(out)
    again = draw.replay(recipe)
    unequal = np.asarray(load(out)) != np.asarray(again.image)
    print(f"{recipe.prompt}, seed {recipe.seed}: {unequal.sum()} values of the pixels differ")
    for line in differences(recipe, again.recipe):
        print(line)


if __name__ == "__main__":
    typer.run(main)
