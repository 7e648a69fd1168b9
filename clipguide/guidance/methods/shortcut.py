"""Shortcut: move x0 along the gradient of the objective at x0, without the denoiser's gradient.

Sources: He et al. 2024, "Manifold preserving guided diffusion" (MPGD, algorithm 1 without its
projection by an autoencoder; the gradient is taken in the latent, eq. 8), and for flow models Patel
et al. 2024 (FlowChef). Their learning rates have units. This step has none (`guidance/descent.py`):

    x0 <- x0 − strength · sin²(πn/2) · rms(x0) · g / rms(g),    g = ∇ loss(decode(x0)).

n is the noise level `Level.noise`, in [0, 1], and sin²(πn/2) = σ² / (α² + σ²). This is the variance
of x0 given the noisy sample, if the data have a variance of 1. A likelihood exp(−loss) moves the
mean of x0 by this variance times −g, to first order: for a Gaussian x0 with covariance C given the
sample, the tilted mean is the mean − C·g. So late steps move little: there the sample already says
what x0 is.

A noisy sample is αx0 + σε. If x0 moves, ε or the sample must move too:

- With fixed="sample", the default, ε moves, and so does the output of the denoiser. In each step, a
  sampler applies the share of the move that it denoises. The sum of these shares does not depend on
  the number of steps, so the same strength fits 10 steps and 100 steps.
- With fixed="noise", the sample moves, as in MPGD (eq. 8) and TFG (its Δ0). Every step applies the
  whole move.

With `every` k, the gradient is computed at every k-th step, and the steps in between move along the
last one. So the moves are as long for every k, but an old gradient leads less far.

With `travel` r, each step is taken r times, with new noise in between (FreeDoM, Yu et al. 2023,
section 4.3; RePaint, Lugmayr et al. 2022): `guidance/travel.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...errors import UsageError, close_matches
from ...schedules import Schedule, Spec, schedule
from .. import travel
from ..contract import Method
from ..descent import Way, descend, lengths, moved
from ..precision import along
from ..run import At, Outcome, Run

FIXED = ("sample", "noise")
LINEAR = 0.5  # strength from which the linear decoder misleads (docs/figures.md)


@dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """Move x0 along the gradient of the objective at x0 (the default method).

    The moves of one step have a total length of `strength` · sin²(πn/2) · rms(x0) at noise level n.
    They need the gradient through the decoder and the CLIP, but not through the denoiser.

    Args:
        strength: a number from 0, or a schedule: a text such as "0.1@0..0.5", a pair, or a function
            of the noise level.
        inner: the number of moves in one step, which share the strength.
        momentum: the share of the previous direction that is kept, from 0 to below 1.
        travel: the number of times that each step is taken, with new noise in between.
        fixed: what stays fixed while x0 moves: the noisy "sample", or its "noise".
    """

    name: ClassVar[str] = "shortcut"
    fades: ClassVar[bool] = True
    holds: ClassVar[bool] = True

    strength: float | str | Sequence[float] | Callable[[float], float] | Schedule = 0.2
    inner: int = 1
    momentum: float = 0.0
    travel: int = 1
    fixed: str = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "strength", _strength(self.strength))
        self.at_least(0, "momentum")
        if self.momentum >= 1:
            raise UsageError(f"The momentum is at least 0 and less than 1, not {self.momentum}.")
        if self.fixed not in FIXED:
            raise UsageError(f"There is no fixed {self.fixed!r}.{close_matches(self.fixed, FIXED)}")
        self.whole(1, "inner", "travel")

    @property
    def idle(self) -> bool:
        if not isinstance(self.strength, Schedule):
            return not self.strength
        pieces = self.strength.pieces
        return self.strength.function is None and not any(p.first or p.last for p in pieces)

    @property
    def taped(self) -> bool:
        return not self.by_call

    def size(self, noise: float) -> float:
        """Return the length of the moves at a noise level, as a fraction of the rms of x0.

        Raises:
            ClipguideError: a schedule that is a function returned a negative number.
        """
        value = self.strength
        if isinstance(value, Schedule):
            value = value(min(max(1 - noise, 0.0), 1.0))
        if value < 0:
            raise UsageError(f"The strength must be a number from 0, not {value} at noise {noise}.")
        return value * math.sin(noise * math.pi / 2) ** 2

    def covers(self, noise: float) -> bool:
        return super().covers(noise) and self.size(noise) > 0

    def check(self, pipe: object) -> None:
        if self.travel > 1:
            travel.check(pipe)

    def repeats(self) -> travel.Travel | None:
        return travel.Travel(self.travel) if self.travel > 1 else None

    def start(self, run: Run) -> Callable[[At], Outcome]:
        told = False

        def act(at: At) -> Outcome:
            nonlocal told
            size = run.weight * self.size(at.level.noise)
            rough = getattr(run.decode, "kind", None) == "linear"
            if rough and size > LINEAR and not told:
                told = True
                run.warn(
                    f"With the linear decoder, a strength of more than {LINEAR:g} can make images "
                    "worse: set decoder to vae or tiny, or lower the strength."
                )
            descent = descend(
                at.x0.detach(),
                self.ways(run, at),
                size=size,
                inner=self.inner,
                momentum=self.momentum,
                factor_B=run.factor_B,
                before=run.kept.get("direction"),
            )
            if self.momentum or self.every > 1:
                run.kept["direction"] = descent.direction
            return descent.outcome(at, fixed=self.fixed)

        return act

    def hold(self, run: Run, at: At) -> Outcome:
        x0, direction = at.x0.detach(), run.kept.get("direction")
        if direction is None:  # a subclass whose own `start` keeps none
            return Outcome(at.model_output, at.sample)
        length_B = lengths(x0, run.weight * self.size(at.level.noise), run.factor_B)
        return moved(at, -along(length_B, x0) * direction, fixed=self.fixed)

    def ways(self, run: Run, at: At) -> list[Way]:
        """Return the gradients to move along, each with its weight."""
        return [(1.0, run.gradient)]


def _strength(value: Spec) -> float | Schedule:
    """Return the strength as a number from 0, or as a schedule of such numbers."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(
                f"The strength must be a number from 0, not {value}; a part of negative weight "
                "repels."
            )
        return value
    try:
        made = schedule(value)
    except UsageError as error:
        raise UsageError(f"The strength must be a number from 0, or a schedule: {error}") from None
    if any(end < 0 for piece in made.pieces for end in (piece.first, piece.last)):
        raise UsageError(
            f"The strength must be a number from 0, not below it in {value!r}; a part of negative "
            "weight repels."
        )
    first = made.pieces[0] if len(made.pieces) == 1 else None
    if first and first.first == first.last and (first.start, first.end) == (0, 1):
        return first.first
    return made
