"""How near images are to the training images: the RMSE of their thumbnails."""

from __future__ import annotations

import numpy as np

# Two images are nearly the same if their RMSE is below NEAR. It compares the images on white, at
# 32x32 pixels, with values in [0, 1].
NEAR = 0.08


def thumbnails(pictures: np.ndarray, side: int = 32) -> np.ndarray:
    """Return float32 (N, side*side*3) in [0, 1]: the images on white, reduced by a box filter."""
    small = np.empty((len(pictures), side * side * 3), np.float32)
    step = pictures.shape[1] // side
    for start in range(0, len(pictures), 256):
        block = np.asarray(pictures[start : start + 256], np.float32) / 255
        white = block[..., :3] * block[..., 3:] + 1 - block[..., 3:]
        white = white.reshape(len(block), side, step, side, step, 3).mean((2, 4))
        small[start : start + 256] = white.reshape(len(block), -1)
    return small


def nearest(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the RMSE between each row of `of` and the nearest row of `among`."""
    best = np.full(len(of), np.inf, np.float32)
    squares = (among**2).sum(1)
    for start in range(0, len(of), 512):
        block = of[start : start + 512]
        distance = (block**2).sum(1)[:, None] + squares[None] - 2 * block @ among.T
        best[start : start + 512] = distance.min(1)
    return np.sqrt(np.maximum(best, 0) / of.shape[1])
