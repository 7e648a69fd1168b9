"""Measure the reader of maps on OpenMoji, a style that no model was trained on.

Shapes: B images, 3 channels, H rows, W columns, K channels of a map.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from clipguide import images
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.reader import load_reader
from training.evaluate.drawings import Drawings
from training.evaluate.ledger import Figure, Settings, figure
from training.reader import explained, rows
from training.samples import COMPONENTS, Maps

READ, DRAWN = 300, 48  # drawings


@torch.no_grad()
def measure(settings: Settings) -> Iterator[Figure]:
    """Measure the share of the variance of the components that is explained. Then draw from maps as
    they are and as they are read, without prompts, and compare the images by RMSE."""
    data = Drawings()
    order = np.random.default_rng(0).permutation(len(known := data.style("openmoji")))[:READ]
    pictures = [data.picture(known[i].index) for i in settings.cut(order)]
    true, reader = Maps(), load_reader()
    parts = [images.to_tensor(pictures[k : k + 50]) for k in range(0, len(pictures), 50)]
    true_BK44 = torch.cat([true(part) for part in parts])
    read_BK44 = torch.cat([reader(part) for part in parts])
    share_C = explained(rows(read_BK44[:, :COMPONENTS]), rows(true_BK44[:, :COMPONENTS]))
    weights = settings.weights("reader", "guide")
    yield figure("reader: variance of the components explained", share_C.mean(), n=len(pictures),
                 weights=weights, unit="%",
                 note=f"OpenMoji; {share_C.min():.2f} to {share_C.max():.2f} by component")
    pipe = MiniPipeline.from_pretrained(settings.folder("generator"))
    pipe.set_progress_bar_config(disable=True)
    one, other = draw(pipe, true_BK44[:DRAWN], 0), draw(pipe, true_BK44[:DRAWN], 1)
    read = draw(pipe, read_BK44[:DRAWN], 0)
    error, chance = rmse(one, read), rmse(one, other)
    yield figure("reader: images from read and true maps, RMSE divided by that of two seeds",
                 error / chance, n=len(one), unit="",
                 weights=weights | settings.weights("generator"),
                 note=f"{error:.3f} / {chance:.3f}, 8 steps, no prompt, OpenMoji")


def draw(pipe: MiniPipeline, map_BK44: torch.Tensor, first: int) -> np.ndarray:
    """Return images_BHW3 in [0, 1]. Image k has the seed 1000·first + k."""
    found = []
    for k in range(0, len(map_BK44), 8):
        part = map_BK44[k : k + 8]
        seeds = [torch.Generator().manual_seed(1000 * first + k + i) for i in range(len(part))]
        more = {"num_inference_steps": pipe.default_steps, "output_type": "np"}
        found.append(pipe([""] * len(part), maps=part, generator=seeds, **more).images)
    return np.concatenate(found)


def rmse(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean over images of the root of the mean squared difference."""
    return float(np.sqrt(((one - other) ** 2).mean((1, 2, 3))).mean())
