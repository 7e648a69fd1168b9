"""The pictures of samples/pictures and the table of their licences, from the built data.

    python -m training.sample_pictures

Only public domain, CC0 and MIT. Many are held out: no shipped model was trained on that thing as
that house draws it (`training/holdout.json`), so that what a model says of them is no memory.
"""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from training import common

FOLDER = common.HERE.parent / "samples" / "pictures"
SIZE = 160  # pixels
FREE = {"public domain", "CC0-1.0", "MIT"}
HOMES = {
    "openclipart": "[Open Clip Art](https://openclipart.org), Debian's openclipart-svg",
    "arcade-kenney": "[Kenney](https://www.kenney.nl), PyPI's arcade",
    "tango": "[Tango](http://tango.freedesktop.org), Debian's tango-icon-theme",
    "flat-color-icons": "[Flat Color Icons](https://github.com/icons8/flat-Color-icons)",
    "fluent-emoji": "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji)",
    "fluent-emoji-flat": "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat",
    "fluent-emoji-3d": "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji), 3D, as packed "
    "by [LobeHub](https://github.com/lobehub/fluent-emoji)",
}
CHOSEN = {
    "openclipart": (
        "food/fruit/another_apple_01.svg",
        "food/fruit/banana.svg",
        "food/fruit/strawberry.svg",
        "food/breads_and_carbs/bread_01.svg",
        "food/pizza_4_stagioni_archite_01.svg",
        "animals/mammals/housecats/gatto_cat_architetto_fra_01.svg",
        "animals/mammals/dogs/beagle_copper_ganson.svg",
        "animals/mammals/horses/cavallo_architetto_franc_02.svg",
        "animals/mammals/big_cats/tigre01_architetto_franc_01.svg",
        "animals/mammals/elefante01_architetto_fr_01.svg",
        "animals/birds/baby_tux_01.svg",
        "animals/rana03_architetto_france_01.svg",
        "animals/bugs/farfalla_butterfly_fra1.svg",
        "buildings/ch_teau-fort_01.svg",
        "transportation/vehicles/rocket.svg",
        "transportation/vehicles/vtt_02.svg",
        "recreation/music/violin_colour_ganson.svg",
        "recreation/music/guitar_profile_philippe__01.svg",
        "unsorted/tenda_da_campeggio_archi_01.svg",
    ),
    "arcade-kenney": (
        "enemies/mouse.png",
        "enemies/fishGreen.png",
        "enemies/bee.png",
        "items/star.png",
        "tiles/mushroomRed.png",
    ),
    "tango": (
        "devices/camera-photo.svg",
        "devices/printer.svg",
        "status/weather-clear.svg",
        "status/weather-overcast.svg",
    ),
    "flat-color-icons": ("alarm-clock", "key", "home"),
    "fluent-emoji": ("rabbit", "pretzel", "octopus"),
    "fluent-emoji-flat": ("automobile", "duck"),
    "fluent-emoji-3d": ("1f98a.webp", "1f41e.webp", "1f9f8.webp", "1f43a.webp"),
}
HEAD = """# The pictures and their licences

Drawings to try clipguide on, {size} px, named after what they show; made by
`python -m training.sample_pictures`. No shipped model was trained on those held out.

| picture | set | author | licence | source file | in training |
|---|---|---|---|---|---|
"""
MIT = """
## The MIT License

Copyright (c) Microsoft Corporation; copyright (c) LobeHub; copyright (c) Icons8

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def chosen() -> list[dict]:
    """Return the rows of the manifest that CHOSEN names, by concept."""
    rows = [json.loads(line) for line in (common.DATA / "manifest.jsonl").open()]
    wanted = {(name, source) for name, sources in CHOSEN.items() for source in sources}
    found = [row for row in rows if (row["set"], row["source"]) in wanted]
    assert len(found) == len(wanted) == len({row["concept"] for row in found}), len(found)
    assert {row["licence"] for row in found} <= FREE
    return sorted(found, key=lambda row: row["concept"])


def on_white(rgba_HW4: np.ndarray) -> Image.Image:
    """Return a drawing on white at SIZE."""
    drawing = Image.fromarray(rgba_HW4)
    page = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(page, drawing).convert("RGB").resize((SIZE, SIZE), Image.LANCZOS)


def main() -> None:
    """Write the pictures and LICENCES.md."""
    pictures = np.load(common.DATA / "pictures.npy", mmap_mode="r")
    held = {(pair["concept"], pair["family"]) for pair in common.holdout()["pairs"]}
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = [HEAD.format(size=SIZE)]
    for row in chosen():
        name = f"{row['concept'].replace(' ', '-')}.png"
        on_white(np.asarray(pictures[row["index"]])).save(FOLDER / name, optimize=True)
        use = "held out" if (row["concept"], row["family"]) in held else "yes"
        columns = (name, HOMES[row["set"]], row["author"], row["licence"], row["source"], use)
        table.append(f"| {' | '.join(columns)} |\n")
    (FOLDER / "LICENCES.md").write_text("".join(table) + MIT, encoding="utf-8")


if __name__ == "__main__":
    main()
