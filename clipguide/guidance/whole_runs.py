"""Optimise an input of the pipeline by gradients through whole runs.

Shapes: B samples, ... the rest of the input's shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .precision import along
from .run import Gradient


def optimised(
    value: torch.Tensor,
    evaluate: Callable[[torch.Tensor, bool], Gradient],
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    update: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    iterations: int,
    momentum: float,
    tell: Callable[[torch.Tensor], None],
    patience: int | None = None,
) -> torch.Tensor:
    """Return the value with the lowest loss of each sample, beginning with the given one.

    The direction is that of Nesterov's momentum m: v <- m·v + s, d = s + m·v.

    Args:
        value: the input.
        evaluate: returns the loss of a run with an input, and its gradient, which is not needed if
            the second argument is False.
        step: returns s, from an input and its gradient.
        update: returns the next input, from an input and d.
        iterations: the number of updates. One more run sees the result of the last one.
        momentum: m.
        tell: called with the negative loss_B of each run.
        patience: stop after this number of runs in which no sample's loss fell below its lowest;
            None does not stop.
    """
    best, velocity, waited = None, torch.zeros_like(value), 0
    for k in range(iterations + 1):
        seen = evaluate(value, k < iterations)
        loss_B = seen.loss_B
        tell(-loss_B)
        if best is None:
            best, best_B = value, loss_B
        better_B = loss_B < best_B
        if seen.value is not None:
            better_B &= seen.value.flatten(1).isfinite().all(1)
        best = torch.where(along(better_B, value), value, best)
        best_B = torch.where(better_B, loss_B, best_B)
        waited = 0 if bool(better_B.any()) or k == 0 else waited + 1
        if k == iterations or waited == patience:
            break
        s = step(value, torch.nan_to_num(seen.value, 0.0, 0.0, 0.0))
        velocity = momentum * velocity + s
        value = update(value, s + momentum * velocity)
    return best
