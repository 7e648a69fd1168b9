"""The pixel canvas: images as the sum of a pyramid of coarser and coarser levels (Burt & Adelson
1983).

A step changes each level, so a whole region changes its colour as quickly as one pixel. An
optimiser with equal steps on all parameters, such as Adam, would draw noise with the finest levels.
They therefore have less weight, each half of the next coarser one, as natural images have
amplitudes of about 1/f (Field 1987).

Shapes: B images, 3 channels, H rows, W columns, h x w of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..clip import clamp_with_gradient
from .base import Canvas, normal

COARSEST = 4  # smallest shorter side of the coarsest level, in pixels
START = 0.01  # initial standard deviation of each level around mid grey
FINEST = 1 / 8  # weight of the finest level; each coarser one has twice that, up to 1


class Pixels(Canvas):
    """The canvas image = 0.5 + Σ scale · level, clamped. Each level has half the size of the one
    before, and is enlarged.

    With `tile`, each level is enlarged as if copies of it lay around it. Levels end where a side is
    odd.
    """

    def __init__(
        self,
        height: int,
        width: int,
        generators: Sequence[torch.Generator],
        *,
        tile: bool = False,
    ) -> None:
        super().__init__(height, width, generators)
        self.sizes, self.tile = [(height, width)], tile
        while min(self.sizes[-1]) >= 2 * COARSEST and not (tile and _is_odd(self.sizes[-1])):
            self.sizes.append(tuple((side + 1) // 2 for side in self.sizes[-1]))
        self.scales = [min(1.0, FINEST * 2**k) for k in range(len(self.sizes))]
        levels = [START * normal((3, *size), generators) for size in self.sizes]
        self.levels = nn.ParameterList(levels)

    def decode(self) -> torch.Tensor:
        return clamp_with_gradient(self._sum())

    def project_(self) -> None:
        """Subtract from the finest level what is outside [0, 1]."""
        with torch.no_grad():
            image_B3HW = self._sum()
            self.levels[0] += (image_B3HW.clamp(0, 1) - image_B3HW) / self.scales[0]

    def _sum(self) -> torch.Tensor:
        image_B3hw = 0.5
        for k in reversed(range(len(self.sizes))):
            if not isinstance(image_B3hw, float):
                image_B3hw = self._enlarge(image_B3hw, self.sizes[k])
            image_B3hw = image_B3hw + self.scales[k] * self.levels[k]
        return image_B3hw

    def _enlarge(self, image_B3hw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if not self.tile:
            return _resize(image_B3hw, size)
        padded_B3hw = F.pad(image_B3hw, (1, 1, 1, 1), "circular")
        return _resize(padded_B3hw, (size[0] + 4, size[1] + 4))[..., 2:-2, 2:-2]

    def set_(self, image_B3HW: torch.Tensor) -> None:
        image_B3hw = image_B3HW.to(self.levels[0]) - 0.5
        for i, (level, scale) in enumerate(zip(self.levels, self.scales, strict=True)):
            if i + 1 < len(self.levels):
                coarser = _resize(image_B3hw, self.sizes[i + 1])
                level.copy_((image_B3hw - self._enlarge(coarser, self.sizes[i])) / scale)
                image_B3hw = coarser
            else:
                level.copy_(image_B3hw / scale)


def _is_odd(size: tuple[int, int]) -> bool:
    return any(side % 2 for side in size)


def _resize(image_B3hw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image_B3hw, size, mode="bilinear", antialias=True)
