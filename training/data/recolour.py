"""Recolour a drawing with its shading kept, and check that the new colour word is true."""

from __future__ import annotations

import numpy as np

from training.data.colours import TERMS, UNCLEAR, dominant_colour, prototypes, term_indices

ACHROMATIC = ("black", "white", "grey")
TRUE_SHARE = 0.45  # least share of the opaque pixels that must have the new colour
CHROMA, SAME_HUE = 24.0, 0.85  # least chroma of a coloured pixel; least cosine to the drawing's hue


def recoloured(rgba: np.ndarray, term: str, rng: np.random.Generator) -> np.ndarray | None:
    """Return the drawing with its main colour changed to `term`.

    The pixels of the main hue take a random named colour of `term`. In white and grey drawings, the
    light pixels without a hue take it. Each pixel keeps its value relative to the others, so the
    shading stays. Paler pixels stay paler.

    Args:
        rgba: the drawing, uint8 (H, W, 4).
        term: the new colour, one of TERMS.
        rng: chooses the named colour.

    Returns:
        The new drawing, uint8 (H, W, 4). None if the main hue covers less than 30 % of the opaque
        pixels, or if `term` is not the dominant colour of the result with a share of TRUE_SHARE.
    """
    rgb, opaque = rgba[..., :3].astype(np.float32), rgba[..., 3] > 32
    mask = main_hue(rgb, opaque, rgba)
    if mask.sum() < 0.3 * opaque.sum():
        return None
    old = rgb[mask]
    value = old.max(1)
    pale = 1 - (value - old.min(1)) / np.maximum(value, 1)
    extra = np.clip((pale - np.median(pale)) / max(1e-3, 1 - float(np.median(pale))), 0, 1)
    named = prototypes()[term]
    target = named[rng.integers(len(named))].astype(np.float32) + rng.normal(0, 6, 3)
    shade = (value / max(float(np.median(value)), 1.0))[:, None]
    new = target * np.minimum(shade, 1) + (255 - target) * np.clip(shade - 1, 0, 1) * 0.6
    if term not in ACHROMATIC and np.median(pale) < 0.9:
        new = new + (255 - new) * extra[:, None] * 0.7
    out = rgba.copy()
    out[mask, :3] = np.clip(new, 0, 255).astype(np.uint8)
    found, share = dominant_colour(out)
    return out if found == term and share >= TRUE_SHARE else None


def main_hue(rgb: np.ndarray, opaque: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Return the mask of the pixels that have the drawing's main colour, bool (H, W)."""
    main, _ = dominant_colour(rgba)
    offset = rgb - rgb.mean(-1, keepdims=True)
    chroma = np.linalg.norm(offset, axis=-1)
    if main in ("white", "grey"):
        return opaque & (chroma < CHROMA) & (rgb.max(-1) > 110)
    if main is None or main == "black":
        return np.zeros(opaque.shape, bool)
    chosen = opaque & (term_indices(rgba[..., :3]) == TERMS.index(main))
    direction = offset[chosen].mean(0)
    cosine = offset @ (direction / max(float(np.linalg.norm(direction)), 1e-6))
    return opaque & (chroma > CHROMA) & (cosine > SAME_HUE * chroma)


def shares_of(rgba: np.ndarray) -> np.ndarray:
    """Return the share of each colour among the opaque pixels, float32 (12,).

    The first 11 are those of TERMS. The last is the share of unclear colours.
    """
    opaque = rgba[rgba[..., 3] > 128][:, :3]
    counts = np.bincount(term_indices(opaque), minlength=UNCLEAR + 1)
    return (counts / max(len(opaque), 1)).astype(np.float32)
