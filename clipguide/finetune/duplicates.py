"""Find images that are nearly the same: recompressed, resized, brightened, cropped by one per cent.

Each image is reduced to 16 x 16 colours, minus their mean, divided by their standard deviation. Two
images are near-duplicates if the cosine of these is at least COSINE, and no cell differs by more
than CELL deviations. Faces with different mouths are therefore not duplicates. Measured on 6,000
drawings and 150 photographs: JPEG at quality 30, half the size, 85 % of the brightness and a gamma
of 1.2 are found in at least 19 of 20 cases. A crop of 2 % per side and a mirror image are not.

Shapes: N images, M of those that are near, D = 16 · 16 · 3.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..near import Neighbours

SIDE = 16
COSINE, CELL = 0.985, 0.6
FLAT = 2.0  # deviation in grey levels below which an image is never a duplicate


def small(picture: Image.Image) -> np.ndarray:
    """Return the bytes_D by which an RGB image is compared: the means of its cells."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)


def groups(small_ND: np.ndarray) -> list[int]:
    """Return the number of the group of each image, in the order of the first images. A group is
    connected by pairs of near-duplicates."""
    first_N = np.arange(len(small_ND))  # first image of the group of each image
    if len(small_ND) < 2:
        return first_N.tolist()
    unit_ND = _unit(small_ND)
    for i, other_M in Neighbours(unit_ND, COSINE):
        other_M = other_M[first_N[other_M] != first_N[i]]
        cell_M = (unit_ND[other_M] - unit_ND[i]).abs().amax(dim=1) * unit_ND.shape[1] ** 0.5
        joined = np.unique(first_N[np.append(other_M[(cell_M <= CELL).numpy()], i)])
        if len(joined) > 1:
            first_N[np.isin(first_N, joined)] = joined[0]
    return np.unique(first_N, return_inverse=True)[1].tolist()


def _unit(small_ND: np.ndarray) -> torch.Tensor:
    x_ND = torch.from_numpy(small_ND).float()
    x_ND -= x_ND.mean(dim=1, keepdim=True)
    norm_N1 = x_ND.norm(dim=1, keepdim=True)
    flat_N1 = norm_N1 < FLAT * x_ND.shape[1] ** 0.5
    return x_ND.div_(norm_N1.clamp_min(1)).masked_fill_(flat_N1, 0)
