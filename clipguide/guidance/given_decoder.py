"""A function of one's own in the place of a decoder.

Shapes: B samples, N decoded images, 3 channels of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import UsageError


class GivenDecoder:
    """A function of one's own in the place of a decoder: latents as the scheduler sees them ->
    image_N3HW in [0, 1]."""

    kind = "given"

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function = function

    def freeze(self) -> None:
        """Nothing needs to be prepared."""

    def thaw(self) -> None:
        """Nothing needs to be undone."""

    def hear(self, height: int, width: int) -> None:
        """The size is the function's to know."""

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """image_N3HW of x0. UsageError if the function gives anything else."""
        image_N3HW = self._function(x0)
        shape = tuple(getattr(image_N3HW, "shape", ()))
        if len(shape) != 4 or shape[1] != 3 or shape[0] % len(x0):
            raise UsageError(
                "A decoder gives images of shape (N, 3, height, width) in [0, 1], and this one "
                f"gave {shape or type(image_N3HW).__name__}."
            )
        return image_N3HW.float()
