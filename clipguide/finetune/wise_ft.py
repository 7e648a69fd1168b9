"""WiSE-FT: weights between the model before and the model after (Wortsman et al. 2022).

Averaged weights keep most of what the first knew and most of what the second learned. The place
between them is chosen where the target is best while the retention has fallen by no more than is
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
    """A place between the models: `alpha` of the new one's weights, and both shares in [0, 1]."""

    alpha: float
    target: float
    retention: float


@torch.no_grad()
def interpolate(model: nn.Module, before: State, after: State, alpha: float) -> None:
    """Writes (1 - alpha) · before + alpha · after into the model (eq. 1); at 0 and 1 these very
    weights. What is no floating-point number is that of `after`."""
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
    """The (target, retention) that `measure` finds at each place; the model is left at the last."""
    places = []
    for alpha in alphas:
        interpolate(model, before, after, alpha)
        places.append(Place(alpha, *measure()))
    return places


def choose(places: Sequence[Place], *, allowed: float) -> Place:
    """The best target of the places whose retention is at most `allowed` under that of alpha 0; of
    equals the one of the most retention, then the least alpha.

    UsageError without the place of alpha 0, or if `allowed` is negative.
    """
    start = next((place for place in places if place.alpha == 0), None)
    if start is None or allowed < 0:
        raise UsageError("The choice needs the place of alpha 0, and an allowance of 0 or more.")
    kept = [place for place in places if place.retention >= start.retention - allowed - 1e-9]
    return max(kept, key=lambda place: (place.target, place.retention, -place.alpha))
