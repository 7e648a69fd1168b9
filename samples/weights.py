"""Weights: `|` separates the parts of a prompt, `:number` weighs one, below 0 it repels.

`negative` is another thing: what classifier-free guidance leads away from.
"""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet

PROMPTS = [
    "a cat",
    "a cat | a tiger:0.5",
    "a cat | a tiger:2",
    "a rose",
    "a rose | red:-0.5",
    "a rose | red:-1",
]


def main(quick: bool = False, out: Path = Path("weights.png")) -> None:
    """Draw each prompt from the same noise, and a rose with a negative."""
    draw = clipguide.TextToImage()
    prompts, steps = (PROMPTS[-1:], 4) if quick else (PROMPTS, 30)
    pictures = draw(prompts, method="shortcut", seed=2, steps=steps)
    pictures += draw("a rose", method="shortcut", negative="red", seed=2, steps=steps)
    labels = [*prompts, "a rose, negative red"]
    sheet = contact_sheet([picture.image for picture in pictures], labels=labels, columns=4)
    sheet.save(out)


if __name__ == "__main__":
    typer.run(main)
