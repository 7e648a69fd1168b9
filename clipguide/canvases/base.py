"""The contract of a canvas: parameters that a loop improves, and the images that they stand for.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UsageError

LEAST, MOST = 8, 8192  # pixels a side


class Canvas(nn.Module):
    """B images as parameters: `parameters()` and `state_dict()` are those of a module, what is
    no parameter (a decoder, a codebook) is in neither. An image's parameters bear on no other.

    Args:
        height, width: of the images in pixels.
        generators: one an image, on the CPU, for what it begins as.
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
        """image_B3HW, differentiable; in [0, 1] or a little beyond."""
        raise NotImplementedError

    @torch.no_grad()
    def project_(self) -> None:
        """Bring parameters that a step led astray back to where images are."""

    @torch.no_grad()
    def encode(self, image_B3HW: torch.Tensor) -> None:
        """Set the parameters to what stands for these images in [0, 1], as nearly as can be.
        UsageError for images of another size or number."""
        wanted = (self.batch, 3, self.height, self.width)
        if tuple(image_B3HW.shape) != wanted:
            raise UsageError(
                f"This canvas holds {self.batch} images of {self.width}x{self.height}, and got "
                f"{tuple(image_B3HW.shape)} (number, channels, height, width)."
            )
        self.set_(image_B3HW)

    def set_(self, image_B3HW: torch.Tensor) -> None:
        """What `encode` does with images of the right size and number."""
        raise NotImplementedError


def normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal numbers (B, *shape), those of an image from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
