"""The contract of a canvas: parameters that a loop optimises, and the images that they represent.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UsageError

LEAST, MOST = 8, 8192  # largest side in pixels


class Canvas(nn.Module):
    """B images as parameters. `parameters()` and `state_dict()` are those of a module. Other
    tensors (a decoder, a codebook) are in neither. The parameters of an image do not affect other
    images.

    Args:
        height: the height of the images in pixels.
        width: their width.
        generators: one for each image, on the CPU, for its initial value.
    """

    def __init__(self, height: int, width: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        for side in (height, width):
            if not LEAST <= side <= MOST:
                raise UsageError(f"A side of an image has {LEAST} to {MOST} pixels, not {side}.")
        if not generators:
            raise UsageError("A canvas has at least one image, so at least one generator.")
        self.height, self.width, self.batch = height, width, len(generators)

    def decode(self) -> torch.Tensor:
        """Return image_B3HW, differentiable, in [0, 1] or slightly beyond."""
        raise NotImplementedError

    @torch.no_grad()
    def project_(self) -> None:
        """Move parameters back into the valid range after a step."""

    @torch.no_grad()
    def encode(self, image_B3HW: torch.Tensor) -> None:
        """Set the parameters to those that represent images in [0, 1] best. Raise UsageError for
        another size or number of images."""
        wanted = (self.batch, 3, self.height, self.width)
        if tuple(image_B3HW.shape) != wanted:
            raise UsageError(
                f"This canvas holds {self.batch} images of {self.width}x{self.height}, and got "
                f"{tuple(image_B3HW.shape)} (number, channels, height, width)."
            )
        self.set_(image_B3HW)

    def set_(self, image_B3HW: torch.Tensor) -> None:
        """Implement `encode` for images of the right size and number."""
        raise NotImplementedError


def normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Return standard normal numbers (B, *shape), each image from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
