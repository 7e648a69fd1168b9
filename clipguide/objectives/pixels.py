"""Objectives of pixels alone. Each is a mean over one image's pixels; images are in [0, 1].

Shapes: B images, 3 channels, H rows, W columns, K colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import UsageError, close_matches
from .base import Objective

AXES = {"horizontal": -1, "vertical": -2}


class TotalVariation(Objective):
    """Mean squared difference of neighbouring pixels, down and across (Rudin et al. 1992, squared
    as in Mahendran & Vedaldi 2015, beta = 2)."""

    def __call__(self, image_B3HW, generators=None):
        down = (image_B3HW[..., 1:, :] - image_B3HW[..., :-1, :]).square()
        across = (image_B3HW[..., 1:] - image_B3HW[..., :-1]).square()
        return down.flatten(1).mean(1) + across.flatten(1).mean(1)


class Range(Objective):
    """Mean squared distance of the pixels from [0, 1]."""

    def __call__(self, image_B3HW, generators=None):
        return (image_B3HW - image_B3HW.clamp(0, 1)).square().flatten(1).mean(1)


class Saturation(Objective):
    """The mean distance of the pixels from the range of an image.

    It is |x − clamp(x, −1, 1)| for x = 2·image − 1, as sat_loss of Disco Diffusion, which also
    averages over the batch. Its gradient has the same size near the range and far from it. That of
    `Range` grows with the distance.
    """

    def __call__(self, image_B3HW, generators=None):
        x_B3HW = 2 * image_B3HW - 1
        return (x_B3HW - x_B3HW.clamp(-1, 1)).abs().flatten(1).mean(1)


class Symmetry(Objective):
    """The mean squared difference between an image and its mirror image.

    "horizontal" swaps left and right, "vertical" top and bottom.
    """

    def __init__(self, axis: str = "horizontal") -> None:
        if axis not in AXES:
            raise UsageError(f"There is no symmetry {axis!r}.{close_matches(str(axis), AXES)}")
        self.axis = axis

    def __call__(self, image_B3HW, generators=None):
        mirrored_B3HW = image_B3HW.flip(AXES[self.axis])
        return (image_B3HW - mirrored_B3HW).square().flatten(1).mean(1)


class Near(Objective):
    """The mean squared difference from one image_3HW in [0, 1], resized to the size of the batch.
    """

    def __init__(self, image_3HW: torch.Tensor) -> None:
        self.image_3HW = image_3HW

    def __call__(self, image_B3HW, generators=None):
        size = tuple(image_B3HW.shape[-2:])
        target_13HW = self.image_3HW[None].to(image_B3HW)
        if size != tuple(target_13HW.shape[-2:]):
            target_13HW = F.interpolate(target_13HW, size, mode="bilinear", antialias=True)
        return (image_B3HW - target_13HW).square().flatten(1).mean(1)


class Palette(Objective):
    """The distance of the pixels from a few colours, given as "#rrggbb" or as triples in [0, 1].

    A pixel p costs −s · log mean_K exp(−‖p − c‖² / s). This is a smooth minimum of its squared
    distances to the K colours (log-sum-exp: Boyd & Vandenberghe 2004, §3.1.5), at most s·log K
    above the smallest. `softness` is s, in squared units of colour. With a larger s, colours that
    lie farther apart attract the same pixel.
    """

    def __init__(self, colours: Sequence[str | Sequence[float]], *, softness: float = 0.01) -> None:
        if isinstance(colours, str) or not len(colours):
            raise UsageError('A palette is a list of colours such as ["#102030", (1, 0.5, 0)].')
        if not (math.isfinite(softness) and softness > 0):
            raise UsageError(f"The softness of a palette must be above 0, not {softness}.")
        self.colours, self.softness = tuple(map(_colour, colours)), softness

    def __call__(self, image_B3HW, generators=None):
        colour_K3 = torch.tensor(self.colours, dtype=image_B3HW.dtype, device=image_B3HW.device)
        pixel_BN13 = image_B3HW.flatten(2).transpose(1, 2)[:, :, None]
        distance_BNK = (pixel_BN13 - colour_K3).square().sum(-1)
        soft_BN = torch.logsumexp(-distance_BNK / self.softness, -1) - math.log(len(colour_K3))
        return -self.softness * soft_BN.mean(1)


def _colour(colour: str | Sequence[float]) -> tuple[float, ...]:
    """Return red, green and blue in [0, 1]. Raise UsageError if it is not a colour."""
    try:
        if isinstance(colour, str):
            hexadecimal = colour[1:] if colour.startswith("#") else ""
            values = tuple(byte / 255 for byte in bytes.fromhex(hexadecimal))
        else:
            values = tuple(map(float, colour))
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise UsageError(
            f"{colour!r} is no colour: write #rrggbb, or red, green and blue in [0, 1]."
        )
    return values
