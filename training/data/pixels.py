"""Load the built images at a training size, measure their colours, and paste them on a canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.data.recolour import shares_of


def at_size(folder: Path, size: int) -> np.ndarray:
    """Return all images as RGBA uint8 (N, size, size, 4), memory-mapped.

    The first call writes the file of this size.
    """
    large = np.load(folder / "pictures.npy", mmap_mode="r")
    if large.shape[1] == size:
        return large
    path = folder / f"pictures-{size}.npy"
    if not path.exists():
        part = path.with_suffix(".part")
        out = np.lib.format.open_memmap(part, "w+", np.uint8, (len(large), size, size, 4))
        for k, rgba in enumerate(large):  # Pillow premultiplies RGBA when it resizes
            out[k] = Image.fromarray(rgba).resize((size, size), Image.Resampling.LANCZOS)
        out.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def shares(folder: Path, rgba: np.ndarray) -> np.ndarray:
    """Return the colour shares of all images, float32 (N, 12), as `shares_of` defines them.

    The first call writes the file.
    """
    path = folder / "colour-shares.npy"
    if not path.exists():
        np.save(path, np.stack([shares_of(picture[::2, ::2]) for picture in rgba]))
    return np.load(path)


def hidden(rgba: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    """Return whether a drawing has nearly the colour `rgb` of the background.

    It does if over 40 % of its opaque pixels differ from `rgb` by less than 150, summed over the
    three channels.
    """
    some = rgba[::6, ::6]
    near = np.abs(some[..., :3].astype(np.int16) - rgb).sum(-1) < 150
    opaque = some[..., 3] > 128
    return bool((near & opaque).sum() > 0.4 * opaque.sum())


def place(canvas: Image.Image, rgba: np.ndarray, scale: float, x: float, y: float) -> None:
    """Paste a drawing on a square canvas, in place.

    Args:
        canvas: the image to change.
        rgba: the drawing, uint8 (H, H, 4).
        scale: the side of the drawing as a share of the canvas's side. The least side is 8 pixels.
        x: the place in [0, 1], from the left.
        y: the place in [0, 1], from the top.
    """
    side = max(8, round(canvas.width * scale))
    image = Image.fromarray(np.ascontiguousarray(rgba))
    small = image if side == image.width else image.resize((side, side), Image.Resampling.BILINEAR)
    room = canvas.width - side
    canvas.paste(small, (round(room * x), round(room * y)), small)
