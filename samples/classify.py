"""Name pictures with no training for it: the likeliest of forty names."""

from pathlib import Path

import typer

import clipguide
from clipguide.images import contact_sheet, load
from clipguide.zero_shot import Classifier

PICTURES = Path(__file__).with_name("pictures")  # each is named after what it shows


def main(quick: bool = False, out: Path = Path("classify.png")) -> None:
    """Name every picture, and say how many names are right."""
    clip = clipguide.load_clip()
    paths = sorted(PICTURES.glob("*.png"))
    names = [path.stem.replace("-", " ") for path in paths]
    pictures = [load(path) for path in paths[: 8 if quick else None]]
    classifier = Classifier(clip, names)
    found = [best for (best,) in classifier.name(clip.encode_pictures(pictures))]
    right = sum(best.label == name for best, name in zip(found, names))
    print(f"{right} of {len(pictures)} are right")
    labels = [f"{best.label} {best.probability:.0%}" for best in found]
    contact_sheet(pictures, labels=labels, columns=8).save(out)


if __name__ == "__main__":
    typer.run(main)
