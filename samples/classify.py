"""Name pictures with no training for it: the nearest of forty names, each said in three ways."""

from pathlib import Path

import torch
import typer

import clipguide
from clipguide.images import contact_sheet, load

PICTURES = Path(__file__).with_name("pictures")  # each is named after what it shows
TEMPLATES = ("{}", "a drawing of a {}", "a picture of a {}")


def main(quick: bool = False, out: Path = Path("classify.png")) -> None:
    """Name every picture, and say how many names are right."""
    clip = clipguide.load_clip()
    paths = sorted(PICTURES.glob("*.png"))
    names = [path.stem.replace("-", " ") for path in paths]
    name_ND = torch.stack(
        [clip.encode_text([t.format(name) for t in TEMPLATES]).mean(0) for name in names]
    )
    name_ND = torch.nn.functional.normalize(name_ND, dim=-1)
    pictures = [load(path) for path in paths[: 8 if quick else None]]
    cosine_BN = clip.similarity(clip.encode_pictures(pictures), name_ND)
    share_B, found_B = (clip.logit_scale * cosine_BN).softmax(1).max(1)
    right = sum(names[found] == name for found, name in zip(found_B, names))
    print(f"{right} of {len(pictures)} are right")
    labels = [f"{names[found]} {share:.0%}" for found, share in zip(found_B, share_B)]
    contact_sheet(pictures, labels=labels, columns=8).save(out)


if __name__ == "__main__":
    typer.run(main)
