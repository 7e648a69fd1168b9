"""Your own objectives: a function or a module.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from ..errors import UsageError
from .base import Objective, fresh_generators


class Custom(Objective):
    """An objective from your function or module. It takes image_B3HW in [0, 1], and optionally the
    generators as a second argument, and returns loss_B. Raise UsageError if it returns anything
    else than one loss for each image."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function, self._takes_generators = function, _takes_two(function)

    def __call__(self, image_B3HW, generators=None):
        if self._takes_generators:
            generators = generators or fresh_generators(len(image_B3HW))
            loss_B = self.function(image_B3HW, generators)
        else:
            loss_B = self.function(image_B3HW)
        shape = tuple(loss_B.shape) if isinstance(loss_B, torch.Tensor) else type(loss_B).__name__
        if shape != (len(image_B3HW),):
            raise UsageError(
                f"An objective gives a loss per image, here of shape ({len(image_B3HW)},), and "
                f"{self} gave {shape}: take the mean over all but the first dimension."
            )
        if loss_B.is_meta:
            raise UsageError(f"{self} gave losses without values, on the device meta.")
        loss_B = loss_B if loss_B.is_floating_point() else loss_B.float()
        return loss_B.to(image_B3HW.device)

    def __repr__(self):
        return getattr(self.function, "__name__", type(self.function).__name__)


def as_objective(given: Objective | Callable[..., torch.Tensor]) -> Objective:
    """Return an objective: the given one, or one made from a function or module. Raise UsageError
    for anything else."""
    if isinstance(given, Objective):
        return given
    if callable(given) and not inspect.isclass(given):
        return Custom(given)
    raise UsageError(
        f"An objective is prompts, an Objective or a function of images, not {given!r}."
    )


def _takes_two(function: Callable) -> bool:
    """Return whether a function, or the `forward` of a module, has two required arguments."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):  # a function in C
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in places if p.default is p.empty]) == 2
