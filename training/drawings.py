"""The drawings that the memory of the embedded generator may have, and how they are varied."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from clipguide.mini.names import COLOURS
from training import common
from training.data.colours import TERMS
from training.data.compose import ON_DISC, REPAINT, SAID_SHARE, TrainingSet
from training.data.pixels import place
from training.data.recolour import recoloured
from training.styles import LABEL

CANDIDATES = common.CACHE / "memory" / "candidates.pt"
SIDE = 256  # pixels of a varied drawing
TURN, STRETCH, SCALE = 6.0, 0.09, (0.88, 1.0)  # degrees; share; of the side of the image
VARIANTS = 3  # of a drawing, at most
HUE, SATURATION, VALUE = 12.0, 0.2, 0.08  # degrees; shares
# Things whose name depends on what the map cannot show.
LEFT_OUT = re.compile(r"o.clock|thirty|icon$|flag|button|keycap|mahjong|input|under|prohibited")


def candidates(data: TrainingSet, most: int) -> dict[str, list[dict]]:
    """Return up to so many drawings of each thing, of different styles as far as there are some."""
    found: dict[str, list[dict]] = {}
    for thing, rows in sorted(data.by_concept.items()):
        rows = [r for r in rows if r["set"] not in ON_DISC and not r["mono"]]
        families = {r["family"] for r in rows}
        drawn = any(r["emoji"] or r["set"] == "openclipart" for r in rows)
        if LEFT_OUT.search(thing) or not drawn or (rows[0]["symbol"] and len(families) < 4):
            continue
        order = np.random.default_rng([13, len(thing), *thing.encode()]).permutation(len(rows))
        by_style: dict[int, list[dict]] = {}
        for k in order:
            by_style.setdefault(LABEL[rows[k]["set"]], []).append(rows[k])
        turns = [by_style[k] for k in sorted(by_style)]
        rounds = [row[k] for k in range(max(map(len, turns))) for row in turns if k < len(row)]
        found[thing] = rounds[:most]
    return found


def varied(
    data: TrainingSet, row: dict, seed: int, rgba: np.ndarray | None = None
) -> np.ndarray:
    """Return a drawing on white, uint8 (SIDE, SIDE, 3), turned, stretched, moved and recoloured.
    `rgba`: in place of the drawing of the row."""
    rng = np.random.default_rng([13 + seed, data.places[row["index"]]])
    rgba = data.rgba[row["index"]] if rgba is None else rgba
    rgba = data.mirrored(toned(rgba, rng), row, rng)
    image, ratio = Image.fromarray(np.ascontiguousarray(rgba)), 1 + rng.uniform(-STRETCH, STRETCH)
    size = round(image.width * min(1, ratio)), round(image.height * min(1, 1 / ratio))
    image = image.resize(size, Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    place(canvas, np.asarray(square), rng.uniform(*SCALE), *rng.uniform(0.3, 0.7, 2))
    return np.asarray(canvas)


def toned(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the drawing with its hue shifted and its saturation and value scaled."""
    pixels = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).astype(np.float32)
    pixels[..., 0] = (pixels[..., 0] + rng.uniform(-HUE, HUE) * 255 / 360) % 256
    for channel, share in ((1, SATURATION), (2, VALUE)):
        scaled = pixels[..., channel] * rng.uniform(1 - share, 1 + share)
        pixels[..., channel] = scaled.clip(0, 255)
    out = rgba.copy()
    out[..., :3] = Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB")
    return out


def repainted(
    data: TrainingSet, row: dict, term: str, rng: np.random.Generator
) -> np.ndarray | None:
    """Return the drawing of a row in another colour, uint8 (H, W, 4). None if it cannot have it, or
    if the colour of this thing is held out."""
    barred = term in data.forbidden.get(row["concept"], ()) or row["set"] in ON_DISC
    if barred or row["category"] not in REPAINT or row["symbol"] or row["mono"]:
        return None
    return recoloured(data.rgba[row["index"]], term, rng)


def drawing(row: dict, seed: int) -> str:
    """Return the name of a varied drawing in memory.tsv."""
    return f"{row['set']}/{row['source']}" + (f"#{seed}" if seed else "")


def by_name(data: TrainingSet) -> dict[str, tuple[dict, int]]:
    """Return the drawing and the seed of each name that `drawing` may give."""
    return {drawing(row, seed): (row, seed) for row in data.rows for seed in range(VARIANTS)}


def own_colour(data: TrainingSet, row: dict) -> int:
    """Return the number of the colour that a caption may say of a drawing, or len(COLOURS)."""
    share = data.shares[row["index"]][: len(TERMS)]
    clear = share.max() >= SAID_SHARE
    return COLOURS.index(TERMS[int(share.argmax())]) if clear else len(COLOURS)
