"""Restyle a drawing: with outlines, in few flat colours, or in one ink. Its colours stay true.

The restyled drawings train the CLIPs on shape. Styles outside the training set (line icons, glyphs)
are recognised by their outline and parts, not by their shading (Geirhos et al., ICLR 2019). RGBA is
uint8 (H, W, 4).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from training.data.colours import TERMS, prototypes
from training.data.recolour import shares_of

NAMED = 0.1  # least share of a drawing's opaque pixels for a colour to count
LEAST, MOST = 0.35, 0.9  # shares of a drawing's opaque pixels that one ink may cover
UNSURE = 0.2  # greatest share of the opaque pixels that are neither dark nor light


def outlined(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the drawing with dark lines around it and between its parts, as in a comic."""
    image = Image.fromarray(np.ascontiguousarray(rgba))
    width = 1 + 2 * int(rng.integers(1, 3))
    alpha = image.getchannel("A")
    rim = np.asarray(alpha.filter(ImageFilter.MaxFilter(width)), np.int16) - np.asarray(
        alpha.filter(ImageFilter.MinFilter(width)), np.int16
    )
    # The parts meet where the lightness of the smoothed drawing on grey has a step.
    grey = Image.new("RGBA", image.size, (128, 128, 128, 255))
    light = Image.alpha_composite(grey, image).convert("L").filter(ImageFilter.MedianFilter(3))
    step = np.asarray(light.filter(ImageFilter.MaxFilter(3)), np.int16) - np.asarray(
        light.filter(ImageFilter.MinFilter(3)), np.int16
    )
    line = np.clip(np.maximum(rim, (step - 24) * 5), 0, 255).astype(np.float32)[..., None] / 255
    ink = rng.integers(0, 60, 3).astype(np.float32)
    out = rgba.astype(np.float32)
    # The lines lie over the drawing. The colours mix by their coverage.
    covered = line + out[..., 3:] / 255 * (1 - line)
    over = ink * line + out[..., :3] * (out[..., 3:] / 255) * (1 - line)
    out[..., :3] = over / np.maximum(covered, 1e-3)
    out[..., 3:] = covered * 255
    return np.clip(out, 0, 255).astype(np.uint8)


def flat(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the drawing in 3 to 6 colours, without shading."""
    rgb = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
    few = rgb.quantize(int(rng.integers(3, 7)), Image.Quantize.FASTOCTREE).convert("RGB")
    return np.concatenate([np.asarray(few), rgba[..., 3:]], -1)


def inked(rgba: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str] | None:
    """Return the dark or the light half of the drawing in one colour, and the colour's term.

    The result is a glyph. Return None in four cases: the drawing has no opaque pixels; over UNSURE
    of them are neither dark nor light; the half covers less than LEAST or more than MOST of them;
    the colour is white.
    """
    opaque = rgba[..., 3].astype(np.float32) / 255
    if opaque.sum() < 1:
        return None
    light = rgba[..., :3].astype(np.float32).mean(-1)
    middle = (light * opaque).sum() / opaque.sum()
    side = 1 if rng.random() < 0.5 else -1
    half = np.clip((middle - light) * side / 24 + 0.5, 0, 1) * opaque
    between = ((half > 0.15) & (half < 0.85) & (opaque > 0.5)).sum() / opaque.sum()
    if between > UNSURE or not LEAST < half.sum() / opaque.sum() < MOST:
        return None
    term = TERMS[int(rng.integers(len(TERMS)))]
    if term == "white":
        return None
    named = prototypes()[term]
    out = np.empty_like(rgba)
    out[..., :3] = named[int(rng.integers(len(named)))]
    out[..., 3] = np.round(half * 255)
    return out, term


def lost(rgba: np.ndarray, out: np.ndarray) -> bool:
    """Return whether the restyled drawing has lost a colour.

    A colour is lost if its share in `rgba` is at least NAMED and its share in `out` is less than
    half of that.
    """
    before, after = shares_of(rgba[::2, ::2])[:-1], shares_of(out[::2, ::2])[:-1]
    return bool(((before >= NAMED) & (after < before / 2)).any())
