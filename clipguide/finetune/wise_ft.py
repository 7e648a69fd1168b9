"""WiSE-FT: weights between those before and those after the training (Wortsman et al. 2022).

Averaged weights keep most of what the old model knew, and most of what the new one learned. The
selected average has the best target among those whose retention has fallen by no more than is
allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError

ALPHAS = tuple(round(0.1 * k, 1) for k in range(11))

State = dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """A weighted average of the two models: `alpha` is the weight of the new one. Both figures are
    in [0, 1]."""

    alpha: float
    target: float
    retention: float


@torch.no_grad()
def interpolate(model: nn.Module, before: State, after: State, alpha: float) -> None:
    """Write (1 - alpha) · before + alpha · after into the model (eq. 1). At 0 and 1, the weights
    are exactly those of one model. Tensors of integers are those of `after`."""
    for name, mine in model.state_dict().items():
        if alpha in (0.0, 1.0) or not mine.is_floating_point():
            mine.copy_(before[name] if alpha == 0.0 else after[name])
        else:
            mine.copy_(torch.lerp(before[name].to(mine), after[name].to(mine), alpha))


def curve(
    model: nn.Module,
    before: State,
    after: State,
    measure: Callable[[], tuple[float, float]],
    alphas: Sequence[float] = ALPHAS,
) -> list[Place]:
    """Return the (target, retention) that `measure` returns for each alpha. The model keeps the
    weights of the last one."""
    places = []
    for alpha in alphas:
        interpolate(model, before, after, alpha)
        places.append(Place(alpha, *measure()))
    return places


def choose(places: Sequence[Place], *, allowed: float) -> Place:
    """Return the place with the best target, among those whose retention is at most `allowed` below
    that at alpha 0. Among equal targets, take the highest retention, then the smallest alpha.

    Raises:
        UsageError: there is no place with alpha 0, or `allowed` is negative.
    """
    start = next((place for place in places if place.alpha == 0), None)
    if start is None or allowed < 0:
        raise UsageError("The choice needs the place of alpha 0, and an allowance of 0 or more.")
    kept = [place for place in places if place.retention >= start.retention - allowed - 1e-9]
    return max(kept, key=lambda place: (place.target, place.retention, -place.alpha))
