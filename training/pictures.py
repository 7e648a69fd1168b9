"""Plain batches of drawings for the pixel models (VAE, VQGAN), straight from the built data."""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import common


class Pictures:
    """The drawings that may be trained on, and the held-out ones; RGBA, 192 px, memory-mapped."""

    def __init__(self) -> None:
        folder = common.DATA
        self.rgba = np.load(folder / "pictures.npy", mmap_mode="r")
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").open()]
        held = {(p["concept"], p["family"]) for p in common.holdout()["pairs"]}
        drawn = [r for r in rows if r["split"] == "train"]
        self.train = np.array(
            [r["index"] for r in drawn if (r["concept"], r["family"]) not in held]
        )
        self.held = np.array([r["index"] for r in drawn if (r["concept"], r["family"]) in held])

    def on(self, index: int, colour: np.ndarray) -> np.ndarray:
        """Drawing `index` on a colour (RGB in [0, 1]) -> float32 HW3 in [0, 1]."""
        rgba = np.asarray(self.rgba[index], np.float32) / 255
        return rgba[..., :3] * rgba[..., 3:] + colour * (1 - rgba[..., 3:])

    def batch(self, rng: np.random.Generator, n: int, size: int) -> Tensor:
        """n training pictures -> (n, 3, size, size) in [0, 1]; below 128 px they are crops.

        70 % stand on white, the others on a random colour; half are mirrored; a quarter have
        their colour channels permuted.
        """
        out = []
        for index in rng.choice(self.train, n):
            colour = np.ones(3) if rng.random() < 0.7 else rng.random(3)
            x = torch.from_numpy(self.on(index, colour.astype(np.float32))).permute(2, 0, 1)
            x = F.interpolate(x[None], (128, 128), mode="bilinear", antialias=True)
            if size < 128:
                i, j = rng.integers(0, 129 - size, 2)
                x = x[..., i : i + size, j : j + size]
            x = x.flip(-1) if rng.random() < 0.5 else x
            out.append(x[:, rng.permutation(3)] if rng.random() < 0.25 else x)
        return torch.cat(out).contiguous()

    def held_out(self, limit: int | None = None) -> Tensor:
        """The held-out drawings on white -> (n, 3, 128, 128) in [0, 1]."""
        white = np.ones(3, np.float32)
        x = np.stack([self.on(i, white) for i in self.held[:limit]])
        return F.interpolate(
            torch.from_numpy(x).permute(0, 3, 1, 2), (128, 128), mode="bilinear", antialias=True
        ).contiguous()
