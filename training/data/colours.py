"""True colour words: find which of the 11 basic terms a pixel or a drawing has.

colours.txt lists named colours, from a survey that people answered on their own screens. A colour
has the term of the nearest named colour in CIELAB. If two terms are about equally near, the colour
has no term. Shapes: rgb (..., 3), uint8.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

TERMS = ("black", "white", "red", "green", "yellow", "blue", "brown", "purple", "pink", "orange",
         "grey")
UNCLEAR = len(TERMS)
# A colour has a term only within two limits. FARTHEST limits the CIE76 distance to the nearest
# named colour, by term. The limit is lower near grey, because small distances are visible there.
# RATIO limits the distance to the nearest term, divided by the distance to the next term.
FARTHEST = np.array([14.0 if t in ("black", "white", "grey") else 30.0 for t in TERMS] + [np.inf])
RATIO = 0.85
BITS = 5  # bits of each channel in the look-up table


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return the CIELAB values (D65, 2 degrees) of sRGB colours, with L in 0..100.

    Sources: IEC 61966-2-1 and CIE 15:2004.
    """
    c = np.asarray(rgb, np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124564, 0.3575761, 0.1804375],
                       [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@cache
def prototypes() -> dict[str, np.ndarray]:
    """Return {term or `none`: uint8 (n, 3), the named colours of the term}."""
    found = {}
    for line in Path(__file__).with_name("colours.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            term, _, codes = line.partition(":")
            found[term] = np.array([list(bytes.fromhex(c)) for c in codes.split()], np.uint8)
    return {term: found[term] for term in (*TERMS, "none")}


def terms_of(rgb: np.ndarray) -> np.ndarray:
    """Return the index into TERMS, or UNCLEAR, of each colour.

    This function is exact but slow. `term_indices` is fast.
    """
    lab = to_lab(rgb).reshape(-1, 1, 3)
    distance = np.stack(
        [np.linalg.norm(lab - to_lab(named)[None], axis=-1).min(1)
         for named in prototypes().values()], 1,
    )
    order = np.argsort(distance, 1)
    first, second = np.take_along_axis(distance, order[:, :2], 1).T
    unclear = (first > FARTHEST[order[:, 0]]) | (first > RATIO * second)
    return np.where(unclear, UNCLEAR, order[:, 0]).astype(np.uint8).reshape(np.shape(rgb)[:-1])


@cache
def lookup() -> np.ndarray:
    """Return the look-up table: the uint8 index of the term for each of 32x32x32 colours."""
    steps = (np.arange(1 << BITS) * 255 / ((1 << BITS) - 1)).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    return terms_of(grid.reshape(-1, 3))


def term_indices(rgb: np.ndarray) -> np.ndarray:
    """Return the index into TERMS, or UNCLEAR, of each colour.

    The function reads a table with 32 levels for each channel.
    """
    r, g, b = (rgb[..., i].astype(np.int32) * 31 // 255 for i in range(3))
    return lookup()[(r << 10) | (g << 5) | b]


def colour_name(rgb) -> str | None:
    """Return the basic colour term of one colour, or None if no term is clear.

    The colour has 3 values in 0..255.
    """
    index = int(terms_of(np.asarray(rgb, np.uint8)))
    return None if index == UNCLEAR else TERMS[index]


def dominant_colour(rgba: np.ndarray) -> tuple[str | None, float]:
    """Return (the commonest term of the drawing's opaque pixels, its share of them).

    Return (None, 0) if no pixel is opaque. Black is often only the colour of outlines. It counts
    only if no other term has at least a fifth of the opaque pixels.
    """
    opaque = rgba[rgba[..., 3] > 128][:, :3]
    if not len(opaque):
        return None, 0.0
    share = np.bincount(term_indices(opaque), minlength=UNCLEAR + 1)[:UNCLEAR] / len(opaque)
    best = int(share.argmax())
    if best == 0 and share[1:].max() >= 0.2:
        best = 1 + int(share[1:].argmax())
    return TERMS[best], float(share[best])
