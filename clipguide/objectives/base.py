"""The base class of all objectives, and their sums, products and schedules.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from ..clip import unit_range
from ..errors import ClipguideError, UsageError

Generators = Sequence[torch.Generator]


class Objective:
    """The base class of all objectives: image_B3HW in [0, 1] -> loss_B, lower is better.

    `generators`, one for each image, supply the random numbers of an objective. Without them, every
    image gets a new generator with seed 0, so that a second call returns the same loss. Images of
    uint8 and uint16 are divided by their range before a subclass sees them. `differentiable` says
    whether the loss has a gradient with respect to the images.
    """

    differentiable: bool = True

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            cls.__call__ = _in_range(vars(cls)["__call__"])

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Generators | None = None
    ) -> torch.Tensor:
        raise NotImplementedError

    def at(self, progress: float) -> Objective:
        """Return this objective at a progress of sampling, from 0 (pure noise) to 1 (clean).

        It is the objective itself if nothing in it follows a schedule.
        """
        return self

    def weight(self, progress: float) -> float:
        """Return the absolute value of the factor before the whole objective at this progress.

        It is 0.5 for `0.5 * a`, and 1 for a sum. The gradient is normalised, so steering multiplies
        its strength by this number.
        """
        return 1.0

    def terms(self) -> Iterator[tuple[float, Objective]]:
        """Yield the objectives that this one consists of, each with its factor.

        An objective that is not composed yields itself. For a schedule, the factor is the value
        farthest from 0. An empty objective yields nothing.
        """
        yield 1.0, self

    def factored(self) -> tuple[float, Objective]:
        """Return the factor of this objective, and the objective without it."""
        return 1.0, self

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        if isinstance(other, Nothing):
            return self
        return _Sum(self, other)

    def __mul__(self, factor: float) -> Objective:
        if isinstance(factor, Objective):
            raise UsageError("Objectives are added, not multiplied; a factor is a number.")
        factor = float(factor)
        if not math.isfinite(factor):
            raise UsageError(f"An objective is scaled by a finite number, not {factor}.")
        return _Scaled(self, factor)

    __rmul__ = __mul__

    def __radd__(self, other: object) -> Objective:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum([…])

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + -other if isinstance(other, Objective) else NotImplemented

    def __truediv__(self, divisor: float) -> Objective:
        if not divisor:
            raise UsageError("An objective cannot be divided by 0.")
        return self * (1.0 / divisor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _in_range(call: Callable) -> Callable:
    @functools.wraps(call)
    def wrapped(self, image_B3HW, *args, **kwargs):
        return call(self, unit_range(image_B3HW), *args, **kwargs)

    return wrapped


class Nothing(Objective):
    """An objective that is 0 for every image, with a gradient of 0: the value of an objective with
    weight 0."""

    def __call__(self, image_B3HW, generators=None):
        return (0 * image_B3HW).flatten(1).sum(1)

    def terms(self):
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

    def __repr__(self):
        return f"{self.first} + {self.second}"

    def terms(self):
        yield from self.first.terms()
        yield from self.second.terms()


class _Scaled(Objective):
    def __init__(self, objective: Objective, factor: float) -> None:
        self.objective, self.factor = objective, factor

    def __call__(self, image_B3HW, generators=None):
        return self.factor * self.objective(image_B3HW, generators)

    def at(self, progress):
        return self.factor * self.objective.at(progress)

    def weight(self, progress):
        return abs(self.factor) * self.objective.weight(progress)

    def __repr__(self):
        inner = f"({self.objective})" if isinstance(self.objective, _Sum) else str(self.objective)
        return f"{self.factor:g} * {inner}"

    def terms(self):
        for factor, term in self.objective.terms():
            yield self.factor * factor, term

    def factored(self):
        factor, objective = self.objective.factored()
        return self.factor * factor, objective


class Rolled(Objective):
    """An objective for images that tile.

    It shifts each image around its edges by a random distance, so that no place is always at an
    edge.
    """

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

    def weight(self, progress):
        return self.objective.weight(progress)

    def terms(self):
        yield from self.objective.terms()


def without_gradient(objective: Objective) -> str:
    """Return the terms of an objective that have no gradient with respect to the images, joined by
    commas."""
    return ", ".join(str(term) for _, term in objective.terms() if not term.differentiable)


def fresh_generators(number: int) -> list[torch.Generator]:
    """Return generators with equal seeds, so that the views of an image do not depend on its place.
    """
    return [torch.Generator().manual_seed(0) for _ in range(number)]


def times_each(batch: int, number: int, name: str) -> int:
    """Return the number of images for each of `number` things; the first images belong to the
    first, as in diffusers. Raise ClipguideError if they do not divide the batch."""
    times, rest = divmod(batch, number)
    if rest or not times:
        raise ClipguideError(
            f"{number} {name} do not divide {batch} images: give one for all, or one for each."
        )
    return times
