"""What all objectives share: how they add, scale and follow a schedule.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from ..clip import unit_range
from ..errors import ClipguideError, UsageError
from ..schedules import Spec, schedule

Generators = Sequence[torch.Generator]
_ROUNDING = 1e-9


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
        """Return the size of the factor of the whole objective at a progress; 1 for a sum.

        The gradient is normalised, so the steering multiplies its strength by this number.
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
        yield from _times(self.factor, self.objective)

    def factored(self):
        factor, objective = self.objective.factored()
        return self.factor * factor, objective


class Scheduled(Objective):
    """An objective whose weight follows a schedule: `Scheduled(objective, "0.2@0..0.4")`.

    It has a value only at a progress. The driver calls `objective.at(progress)` before each step.
    Sums, products and the other compositions pass the call on. Where the weight is 0, the result is
    `Nothing`, which costs no time.
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
        yield from _times(max(weights, key=abs), self.objective)


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


def _times(factor: float, objective: Objective) -> Iterator[tuple[float, Objective]]:
    for own, term in objective.terms():
        yield factor * own, term


class Custom(Objective):
    """Your own function or module: image_B3HW in [0, 1] -> loss_B, perhaps with the generators as a
    second argument. Raise UsageError if it returns anything but one loss per image."""

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
        return loss_B.to(image_B3HW.device)

    def __repr__(self):
        return getattr(self.function, "__name__", type(self.function).__name__)


def as_objective(given: Objective | Callable[..., torch.Tensor]) -> Objective:
    """Return the objective, or that of a function or module. Raise UsageError for anything else."""
    if isinstance(given, Objective):
        return given
    if callable(given) and not inspect.isclass(given):
        return Custom(given)
    raise UsageError(
        f"An objective is prompts, an Objective or a function of images, not {given!r}."
    )


def without_gradient(objective: Objective) -> str:
    """Return the terms of an objective that have no gradient with respect to the images, joined by
    commas."""
    return ", ".join(str(term) for _, term in objective.terms() if not term.differentiable)


def finished(objective: Objective) -> Objective:
    """Return the objective that ranks finished images: as it is at the end, or if its schedules
    leave nothing there, as it is last."""
    for hundredth in range(100, -1, -1):
        at = objective.at(hundredth / 100)
        if not isinstance(at, Nothing):
            return at
    return Nothing()


def _takes_two(function: Callable) -> bool:
    """Return whether a function, or the `forward` of a module, needs two arguments."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):  # one of C's
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in places if p.default is p.empty]) == 2


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
