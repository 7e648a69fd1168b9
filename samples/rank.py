"""The best of many pictures: like a text, unlike another, and unlike each other."""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet, load
from clipguide.rerank import Criterion, combine, rank

PICTURES = Path(__file__).with_name("pictures")
TEXT, NEGATIVE = "fruit", "an animal"


def main(quick: bool = False, out: Path = Path("rank.png")) -> None:
    """Find the eight pictures that are most like the text; below them, eight that are diverse."""
    clip = clipguide.load_clip()
    paths = sorted(PICTURES.glob("*.png"))[: 8 if quick else None]
    pictures = [load(path) for path in paths]
    image_BD = clip.encode_pictures(pictures)
    text_BN = clip.similarity(image_BD, clip.encode_text([TEXT, NEGATIVE]))
    criteria = Criterion("text", text_BN[:, 0]), Criterion("negative", text_BN[:, 1], weight=-0.5)
    relevance_B = combine(criteria)
    shown, labels = [], []
    for diversity in (0.0, 0.5):
        best = rank(relevance_B, image_BD, keep=8, diversity=diversity).best
        labels += [f"{paths[i].stem} {relevance_B[i]:.3f}" for i in best]
        shown += [pictures[i] for i in best]
        print(f"{TEXT}, diversity {diversity}: {', '.join(paths[i].stem for i in best)}")
    contact_sheet(shown, labels=labels, columns=8).save(out)


if __name__ == "__main__":
    typer.run(main)
