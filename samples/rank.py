"""Rank pictures by what they show: the cosine of each with a text, the best first."""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet, load

PICTURES = Path(__file__).with_name("pictures")
TEXT = "fruit"


def main(quick: bool = False, out: Path = Path("rank.png")) -> None:
    """Find the eight pictures that are most like the text."""
    clip = clipguide.load_clip()
    paths = sorted(PICTURES.glob("*.png"))[: 8 if quick else None]
    pictures = [load(path) for path in paths]
    scores = clip.similarity(clip.encode_pictures(pictures), clip.encode_text([TEXT]))[:, 0]
    best = scores.argsort(descending=True)[:8].tolist()
    labels = [f"{paths[i].stem} {scores[i]:.3f}" for i in best]
    print(f"{TEXT}: {', '.join(labels)}")
    contact_sheet([pictures[i] for i in best], labels=labels, columns=4).save(out)


if __name__ == "__main__":
    typer.run(main)
