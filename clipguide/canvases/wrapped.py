"""Canvases around another canvas: a mask, a mirror.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UsageError, close_matches
from ..objectives.pixels import AXES
from .base import Canvas


class Wrapped(Canvas):
    """A canvas that shows another one in a changed way. The parameters are those of the other."""

    def __init__(self, canvas: Canvas) -> None:
        nn.Module.__init__(self)
        self.canvas = canvas
        self.height, self.width, self.batch = canvas.height, canvas.width, canvas.batch

    def project_(self) -> None:
        self.canvas.project_()

    def set_(self, image_B3HW: torch.Tensor) -> None:
        self.canvas.encode(image_B3HW)


class Masked(Wrapped):
    """The canvas where mask_HW is 1, image_B3HW (in [0, 1]) where it is 0, and a mixture in
    between. Raise UsageError if the mask has another size, or is 0 or 1 everywhere."""

    def __init__(self, canvas: Canvas, image_B3HW: torch.Tensor, mask_HW: torch.Tensor) -> None:
        super().__init__(canvas)
        check_mask(mask_HW, canvas.height, canvas.width)
        self.register_buffer("image_B3HW", image_B3HW, persistent=False)
        self.register_buffer("mask_HW", mask_HW, persistent=False)

    def decode(self) -> torch.Tensor:
        return self.image_B3HW.lerp(self.canvas.decode(), self.mask_HW)


class Mirrored(Wrapped):
    """The mean of the canvas and its mirror image: "horizontal" swaps left and right, "vertical"
    top and bottom."""

    def __init__(self, canvas: Canvas, axis: str) -> None:
        if axis not in AXES:
            raise UsageError(f"There is no symmetry {axis!r}.{close_matches(str(axis), AXES)}")
        super().__init__(canvas)
        self.axis = AXES[axis]

    def decode(self) -> torch.Tensor:
        image_B3HW = self.canvas.decode()
        return (image_B3HW + image_B3HW.flip(self.axis)) / 2


def check_mask(mask_HW: torch.Tensor, height: int, width: int) -> None:
    """Raise UsageError unless the mask has that size, and has both drawn and kept pixels."""
    if tuple(mask_HW.shape) != (height, width):
        rows, columns = mask_HW.shape
        raise UsageError(
            f"The mask is {columns}x{rows} and the image {width}x{height}: they must be of one "
            "size."
        )
    if not (mask_HW > 0).any():
        raise UsageError("The mask is black all over: white is where to draw.")
    if not (mask_HW < 1).any():
        raise UsageError("The mask is white all over, so nothing is kept: leave it out.")
