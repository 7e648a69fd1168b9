"""What all objectives share: how they add, scale and follow a schedule.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from ..clip import unit_range
from ..errors import ClipguideError, UsageError
from ..schedules import Spec, schedule

Generators = Sequence[torch.Generator]
_ROUNDING = 1e-9


class Objective:
    """The base of all. `generators`, one an image, feed what is random in an objective; without
    them every image gets a new one of seed 0, so that a call repeats. Images of uint8 and uint16
    are divided by their range before a subclass sees them."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            cls.__call__ = _in_range(vars(cls)["__call__"])

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Generators | None = None
    ) -> torch.Tensor:
        raise NotImplementedError

    def at(self, progress: float) -> Objective:
        """This objective at a progress of the sampling, 0 (pure noise) to 1 (clean): itself, if
        nothing in it follows a schedule."""
        return self

    def leaves(self) -> Iterator[Objective]:
        """The objectives that this one is made of, itself if of none; none where it is nothing."""
        yield self

    def factored(self) -> tuple[float, Objective]:
        """The number that this objective is scaled by, and what is scaled."""
        return 1.0, self

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        if isinstance(other, Nothing):
            return self
        return _Sum(self, other)

    def __mul__(self, factor: float) -> Objective:
        factor = float(factor)
        if not math.isfinite(factor):
            raise UsageError(f"An objective is scaled by a finite number, not {factor}.")
        return _Scaled(self, factor)

    __rmul__ = __mul__


def _in_range(call: Callable) -> Callable:
    @functools.wraps(call)
    def wrapped(self, image_B3HW, *args, **kwargs):
        return call(self, unit_range(image_B3HW), *args, **kwargs)

    return wrapped


class Nothing(Objective):
    """0 for every image, with a gradient of 0: what an objective is where its weight is 0."""

    def __call__(self, image_B3HW, generators=None):
        return (0 * image_B3HW).flatten(1).sum(1)

    def leaves(self):
        yield from ()

    def __add__(self, other):
        return other if isinstance(other, Objective) else NotImplemented

    def __mul__(self, factor):
        return self

    __rmul__ = __mul__


class _Sum(Objective):
    def __init__(self, first: Objective, second: Objective) -> None:
        self.first, self.second = first, second

    def __call__(self, image_B3HW, generators=None):
        return self.first(image_B3HW, generators) + self.second(image_B3HW, generators)

    def at(self, progress):
        return self.first.at(progress) + self.second.at(progress)

    def leaves(self):
        yield from self.first.leaves()
        yield from self.second.leaves()


class _Scaled(Objective):
    def __init__(self, objective: Objective, factor: float) -> None:
        self.objective, self.factor = objective, factor

    def __call__(self, image_B3HW, generators=None):
        return self.factor * self.objective(image_B3HW, generators)

    def at(self, progress):
        return self.factor * self.objective.at(progress)

    def leaves(self):
        yield from self.objective.leaves()

    def factored(self):
        factor, objective = self.objective.factored()
        return self.factor * factor, objective


class Scheduled(Objective):
    """An objective whose weight follows a schedule: `Scheduled(objective, "0.2@0..0.4")`.

    It has a value only at a progress: a driver asks `objective.at(progress)` before each step, and
    sums, products and the other compositions pass that on. Where the weight is 0, it is `Nothing`,
    and costs nothing.
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

    def leaves(self):
        yield from self.objective.leaves()


class InTurn(Objective):
    """One objective after another: pairs of the progress from which one holds, and the objective.
    The first holds from 0. UsageError unless progress grows from pair to pair."""

    def __init__(self, *turns: tuple[float, Objective]) -> None:
        starts = [start for start, _ in turns]
        if not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:])):
            raise UsageError(f"Turns begin at 0, each later than the one before, not at {starts}.")
        self.turns = turns

    def __call__(self, image_B3HW, generators=None):
        raise ClipguideError("Objectives in turn have a value only at a progress: objective.at(…).")

    def at(self, progress):
        *_, current = (o for start, o in self.turns if start <= progress + _ROUNDING)
        return current.at(progress)

    def leaves(self):
        for _, objective in self.turns:
            yield from objective.leaves()


class Rolled(Objective):
    """An objective of pictures that tile: each is moved around by a distance of its generator's, so
    that no place is an edge."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, image_B3HW, generators=None):
        generators = generators or fresh_generators(len(image_B3HW))
        rolled = []
        for image_3HW, generator in zip(image_B3HW, generators, strict=True):
            share_2 = torch.rand(2, generator=generator).tolist()
            by = [int(side * share) for side, share in zip(image_3HW.shape[-2:], share_2)]
            rolled.append(image_3HW.roll(by, (-2, -1)))
        return self.objective(torch.stack(rolled), generators)

    def at(self, progress):
        return Rolled(self.objective.at(progress))

    def leaves(self):
        yield from self.objective.leaves()


def fresh_generators(number: int) -> list[torch.Generator]:
    """Generators that all begin alike, so that an image's views do not depend on its place."""
    return [torch.Generator().manual_seed(0) for _ in range(number)]


def times_each(batch: int, number: int, name: str) -> int:
    """How many images each of `number` things is for, the first images for the first, as in
    diffusers. ClipguideError if they do not divide the batch."""
    times, rest = divmod(batch, number)
    if rest or not times:
        raise ClipguideError(
            f"{number} {name} do not divide {batch} images: give one for all, or one for each."
        )
    return times
