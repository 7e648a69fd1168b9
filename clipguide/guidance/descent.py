"""Move x0 down an objective, by steps whose length has no unit.

    x0 <- x0 − size · rms(x0) · d,    d = Σ_k w_k g_k / rms(g_k)

Each rms is over one sample. The g_k are gradients of one loss that were computed in different ways,
and the w_k are their weights. With momentum m, the direction is m·d' + Σ_k w_k g_k / rms(g_k),
scaled to the rms of the second term. d' is the direction of the evaluation before (heavy ball).

Shapes: B samples, ... the rest of a latent's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .precision import along, rms, unit
from .run import At, Gradient, Outcome

Way = tuple[float, Callable[[torch.Tensor], Gradient]]


@dataclass(frozen=True)
class Descent:
    """The result of the steps of one evaluation. `delta` is added to x0. `first` is the gradient at
    x0. `direction` is the last direction, for the next evaluations. If `finite_B` is
    False, a gradient was NaN or infinite, and the sample did not move."""

    delta: torch.Tensor
    first: Gradient
    gradient_B: torch.Tensor
    finite_B: torch.Tensor
    direction: torch.Tensor

    def outcome(self, at: At, *, fixed: str) -> Outcome:
        """Return the outcome of an evaluation, as `moved` does, with what was measured."""
        return replace(
            moved(at, self.delta, fixed=fixed),
            image_N3HW=self.first.image_N3HW,
            loss_B=self.first.loss_B,
            gradient_B=self.gradient_B,
            finite_B=self.finite_B,
        )


def moved(at: At, delta: torch.Tensor, *, fixed: str) -> Outcome:
    """Return the outcome of an evaluation whose x0 moves by `delta`. With "sample" the noisy sample
    stays as it is, so that the noise moves with x0; with "noise" the noise stays, so that the
    sample moves."""
    model_output, sample = at.model_output, at.sample
    if fixed == "sample":
        model_output = at.level.move(model_output, delta)
    else:
        model_output, sample = at.level.move_sample(model_output, sample, delta)
    return Outcome(model_output, sample, delta=delta)


def lengths(x0: torch.Tensor, size: float, factor_B: torch.Tensor | None) -> torch.Tensor:
    """Return the length_B of a move of `size` times rms(x0), times the factor of each sample."""
    length_B = size * rms(x0)
    return length_B if factor_B is None else length_B * factor_B.to(length_B)


def descend(
    x0: torch.Tensor,
    ways: Sequence[Way],
    *,
    size: float,
    inner: int = 1,
    momentum: float = 0.0,
    factor_B: torch.Tensor | None = None,
    before: torch.Tensor | None = None,
) -> Descent:
    """Take the steps of one evaluation.

    Args:
        x0: the clean latents of B samples.
        ways: pairs of a weight and a gradient at x0, at least one.
        size: the length of all steps together, as a fraction of rms(x0).
        inner: the number of steps that share it.
        momentum: from 0 to below 1, the share of the direction `before`.
        factor_B: the factor of the size of each sample; None means 1.
        before: the direction of the evaluation before.
    """
    size_B = lengths(x0, size / inner, factor_B)
    delta, direction, first = torch.zeros_like(x0), before, None
    for _ in range(inner):
        seen = [gradient(x0 + delta if first else x0) for _, gradient in ways]
        first = first or seen[0]
        finite_B = torch.stack([rms(one.value).isfinite() for one in seen]).all(0)
        new = sum(
            weight * unit(torch.where(along(finite_B, x0), one.value, 0.0))
            for (weight, _), one in zip(ways, seen, strict=True)
        )
        if momentum and direction is not None:
            mixed = new + momentum * direction
            new = unit(mixed) * along(rms(new), x0)
        direction = new
        delta = delta - along(size_B * finite_B, x0) * direction
    gradient_B = rms(first.value)
    return Descent(delta, first, gradient_B, finite_B, direction)
