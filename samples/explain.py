"""Where the CLIP sees a text in a picture: heat maps of two drawings side by side."""

from pathlib import Path

import typer
from PIL import Image

import clipguide
from clipguide.explain import heat_maps, overlay
from clipguide.images import contact_sheet, load

PICTURES = Path(__file__).with_name("pictures")
PAIRS = [("fox", "car"), ("cat", "guitar"), ("house", "penguin"), ("banana", "bicycle")]


def side_by_side(names: tuple[str, str]) -> Image.Image:
    """Two drawings in the middle of a white square, the first on the left."""
    sheet = Image.new("RGB", (320, 320), "white")
    for i, name in enumerate(names):
        sheet.paste(load(PICTURES / f"{name}.png"), (160 * i, 80))
    return sheet


def main(quick: bool = False, out: Path = Path("explain.png")) -> None:
    """Draw each pair of things, and where the one and the other are seen in it."""
    clip = clipguide.load_clip()
    shown, labels = [], []
    for names in PAIRS[: 1 if quick else None]:
        picture = side_by_side(names)
        map_NHW = heat_maps(clip, [picture], clip.encode_text([f"a {name}" for name in names]))[0]
        middle = map_NHW.shape[-1] // 2
        right_N = map_NHW[..., middle:].sum((1, 2)) / map_NHW.sum((1, 2))
        print(", ".join(f"{name}: {x:.0%} on the right" for name, x in zip(names, right_N)))
        shown += [picture, *(overlay(picture, map_HW) for map_HW in map_NHW)]
        labels += ["", *names]
    contact_sheet(shown, labels=labels, columns=6).save(out)


if __name__ == "__main__":
    typer.run(main)
