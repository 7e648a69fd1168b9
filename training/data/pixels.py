"""The built pictures at a training size, their colours, and how one is put on a canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.data.recolour import shares_of


def at_size(folder: Path, size: int) -> np.ndarray:
    """Return all pictures as RGBA uint8 (N, size, size, 4), memory-mapped; made at first use."""
    large = np.load(folder / "pictures.npy", mmap_mode="r")
    if large.shape[1] == size:
        return large
    path = folder / f"pictures-{size}.npy"
    if not path.exists():
        part = path.with_suffix(".part")
        out = np.lib.format.open_memmap(part, "w+", np.uint8, (len(large), size, size, 4))
        for k, rgba in enumerate(large):  # Pillow premultiplies when it resizes RGBA
            out[k] = Image.fromarray(rgba).resize((size, size), Image.Resampling.LANCZOS)
        out.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def shares(folder: Path, rgba: np.ndarray) -> np.ndarray:
    """Return float32 (N, 12): see `shares_of`; made at first use."""
    path = folder / "colour-shares.npy"
    if not path.exists():
        np.save(path, np.stack([shares_of(picture[::2, ::2]) for picture in rgba]))
    return np.load(path)


def hidden(rgba: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    """Return whether most of a drawing is nearly the colour of the ground."""
    some = rgba[::6, ::6]
    near = np.abs(some[..., :3].astype(np.int16) - rgb).sum(-1) < 150
    opaque = some[..., 3] > 128
    return bool((near & opaque).sum() > 0.4 * opaque.sum())


def place(canvas: Image.Image, rgba: np.ndarray, scale: float, x: float, y: float) -> None:
    """Paste a drawing at `scale` of the canvas; x, y in [0, 1] from the left and the top."""
    side = max(8, round(canvas.width * scale))
    image = Image.fromarray(np.ascontiguousarray(rgba))
    small = image if side == image.width else image.resize((side, side), Image.Resampling.BILINEAR)
    room = canvas.width - side
    canvas.paste(small, (round(room * x), round(room * y)), small)
