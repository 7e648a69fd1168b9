"""Unguided, guided, and the guide's favourite of four: the same prompts and seeds side by side.

The judge, a CLIP that neither steers nor picks, says how well each went.
"""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet

PROMPTS = ["a red fox", "a yellow car", "a green house", "a blue tulip"]
WAYS = {
    "unguided": {"strength": 0.0},
    "guided": {"method": "shortcut"},
    "best of 4": {"strength": 0.0, "best_of": 4, "select": ["clip=mini"]},
    "guided best of 4": {"method": "shortcut", "best_of": 4},
}


def main(quick: bool = False, out: Path = Path("compare.png")) -> None:
    """Draw each prompt in four ways."""
    draw = clipguide.TextToImage()
    prompts, steps = (PROMPTS[:1], 2) if quick else (PROMPTS, 30)
    drawn = {way: draw(prompts, seed=1, steps=steps, **how) for way, how in WAYS.items()}
    for way, pictures in drawn.items():
        mean = sum(picture.judge_score for picture in pictures) / len(pictures)
        print(f"{way}: judge {mean:.3f} on average")
    rows = [(way, drawn[way][i]) for i in range(len(prompts)) for way in WAYS]
    labels = [f"{way} {picture.judge_score:.3f}" for way, picture in rows]
    sheet = contact_sheet([picture.image for _, picture in rows], labels=labels, columns=len(WAYS))
    sheet.save(out)


if __name__ == "__main__":
    typer.run(main)
