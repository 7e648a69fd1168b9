"""Batches of drawings for the autoencoder and the VQGAN, from the built data."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
from torch import Tensor

from training import common
from training.data.pixels import at_size


class Pictures:
    """The drawings of the training data and the held-out drawings, memory-mapped."""

    def __init__(self) -> None:
        rows = [json.loads(line) for line in (common.DATA / "manifest.jsonl").open()]
        held = {(p["concept"], p["family"]) for p in common.holdout()["pairs"]}
        drawn = [r for r in rows if r["split"] == "train"]
        self.train = np.array(
            [r["index"] for r in drawn if (r["concept"], r["family"]) not in held]
        )
        self.held = np.array([r["index"] for r in drawn if (r["concept"], r["family"]) in held])
        self.at_size = cache(lambda size: at_size(common.DATA, size))

    def on(self, index: int, size: int, colour: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
        """Return a box of a drawing of `size` pixels on a colour (RGB in [0, 1]), as image_HW3 in
        [0, 1], float32."""
        rgba = np.asarray(self.at_size(size)[index][box], np.float32) / 255
        return rgba[..., :3] * rgba[..., 3:] + colour * (1 - rgba[..., 3:])

    def batch(self, rng: np.random.Generator, n: int, size: int, crop: int | None = None) -> Tensor:
        """Return n drawings of the training data of `size` pixels, or crops of them, as a tensor
        (n, 3, side, side) in [0, 1].

        70 % stand on white, the others on a random colour. Half are mirrored. The colour channels
        of a quarter are permuted.
        """
        out, side = [], crop or size
        for index in rng.choice(self.train, n):
            colour = np.ones(3) if rng.random() < 0.7 else rng.random(3)
            i, j = rng.integers(0, size - side + 1, 2)
            box = slice(i, i + side), slice(j, j + side)
            x = self.on(index, size, colour.astype(np.float32), box)
            x = x[:, ::-1] if rng.random() < 0.5 else x
            out.append(x[..., rng.permutation(3)] if rng.random() < 0.25 else x)
        return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()

    def held_out(self, size: int, limit: int | None = None) -> Tensor:
        """Return the held-out drawings on white, as a tensor (n, 3, size, size) in [0, 1]."""
        white, everything = np.ones(3, np.float32), (slice(None), slice(None))
        x = np.stack([self.on(i, size, white, everything) for i in self.held[:limit]])
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
