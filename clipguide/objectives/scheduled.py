"""Objectives that change with the progress of sampling."""

from __future__ import annotations

from ..errors import ClipguideError, UsageError
from ..schedules import Spec, schedule
from .base import Nothing, Objective

_ROUNDING = 1e-9


class Scheduled(Objective):
    """An objective whose weight follows a schedule: `Scheduled(objective, "0.2@0..0.4")`.

    Its loss depends on the progress of sampling, so you cannot call it with images alone. `steer`
    and `Loop` call `objective.at(progress)` before each step. Sums, products and other compositions
    call `at` of their parts. If the weight is 0, the result takes no time.

    Args:
        objective: the objective.
        spec: the schedule, as `clipguide.schedules.schedule` takes it.
    """

    def __init__(self, objective: Objective, spec: Spec) -> None:
        self.objective, self.schedule = objective, schedule(spec)

    def __call__(self, image_B3HW, generators=None):
        raise ClipguideError(
            "An objective that follows a schedule has a value only at a progress: ask "
            "objective.at(progress), which runs from 0 (pure noise) to 1 (clean)."
        )

    def at(self, progress):
        weight = self.schedule(progress)
        return weight * self.objective.at(progress) if weight else Nothing()

    def weight(self, progress):
        return abs(self.schedule(progress)) * self.objective.weight(progress)

    def __repr__(self):
        return f"Scheduled({self.objective}, {str(self.schedule)!r})"

    def terms(self):
        weights = [self.schedule(hundredth / 100) for hundredth in range(101)]
        most = max(weights, key=abs)
        for factor, term in self.objective.terms():
            yield most * factor, term


class InTurn(Objective):
    """Several objectives, one after the other.

    Args:
        *turns: pairs of a progress and the objective that applies from there. The first progress
            is 0.

    Raises:
        UsageError: the progress does not grow from pair to pair.
    """

    def __init__(self, *turns: tuple[float, Objective]) -> None:
        starts = [start for start, _ in turns]
        if not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:])):
            raise UsageError(f"Turns begin at 0, each later than the one before, not at {starts}.")
        self.turns = turns

    def __call__(self, image_B3HW, generators=None):
        raise ClipguideError("Objectives in turn have a value only at a progress: objective.at(…).")

    def at(self, progress):
        return self._current(progress).at(progress)

    def weight(self, progress):
        return self._current(progress).weight(progress)

    def _current(self, progress: float) -> Objective:
        *_, current = (o for start, o in self.turns if start <= progress + _ROUNDING)
        return current

    def terms(self):
        for _, objective in self.turns:
            yield from objective.terms()


def finished(objective: Objective) -> Objective:
    """Return the objective that ranks finished images: the objective at the end of the run, or if
    its schedules are 0 there, at the last progress at which they are not."""
    for hundredth in range(100, -1, -1):
        at = objective.at(hundredth / 100)
        if not isinstance(at, Nothing):
            return at
    return Nothing()
