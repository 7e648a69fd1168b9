"""One prompt, many seeds: a grid, each picture shown as soon as its batch is done."""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet


def main(quick: bool = False, out: Path = Path("seeds.png")) -> None:
    """Draw twelve butterflies."""
    draw = clipguide.TextToImage()
    pictures = []
    count, steps = (1, 4) if quick else (12, 30)
    for picture in draw.iterate("a blue butterfly", count=count, best_of=1, seed=0, steps=steps):
        pictures.append(picture)
        print(f"seed {picture.seed}: judge {picture.judge_score:.3f}")
    labels = [f"seed {picture.seed}" for picture in pictures]
    sheet = contact_sheet([picture.image for picture in pictures], labels=labels, columns=4)
    sheet.save(out)


if __name__ == "__main__":
    typer.run(main)
