"""The interface of a method: when it acts, what it does at a step, and how it runs the pipeline.

A step method acts after each evaluation of the denoiser, in an ordinary call of the pipeline. A
call method runs the pipeline itself, in `s(…)` of `with steer(pipe, …) as s`. `run` has the types
that a method receives and returns at a step.

Shapes: B samples, 3 channels of H x W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ..errors import UsageError
from .generators import Given
from .run import At, Gradient, Outcome, Repeats, Run

WINDOW = (0.1, 1.0)
MOST = 10_000  # the largest whole number of an argument


class Sampler(Protocol):
    """The argument of `Method.call`: the pipeline, with functions that run it."""

    pipe: object

    def sample(
        self,
        *,
        by: Method | None,
        differentiable: bool = False,
        memory: object = None,
        behind: Given = None,
        **settings: object,
    ) -> object:
        """Run the pipeline once and return its result.

        Args:
            by: the step method that steers the run; None does not steer.
            differentiable: whether the denoiser computes gradients.
            memory: a value for `run.memory`, which `start` of the method can read.
            behind: generators whose states those of the call take at the first step.
            **settings: the arguments of the pipeline.
        """

    def initial_noise(self, **settings: object) -> torch.Tensor:
        """Return the initial latents, in the form of the pipeline's argument `latents`. The
        generators of the call are then in the states in which its first step finds them."""

    def conditioning(self, of: str) -> contextlib.AbstractContextManager:
        """Open a context that adds a shift to what the denoiser is conditioned on.

        Its value has `shift`, which the method changes, and `size_B`, the rms of the conditioning.
        Both are None until the denoiser was called once.

        Args:
            of: "prompt" for the embedding of the prompt, "null" for that of the empty prompt,
                "maps" for the maps of the embedded generator.
        """

    def preview(self, *, until: float, by: Method | None, **settings: object) -> torch.Tensor:
        """Run the first steps, a share `until` of all, and return the score_B of the decoded x0.
        """

    def borrowing(
        self, *, scheduler: str | None, adapter: str | None
    ) -> contextlib.AbstractContextManager:
        """Open a context in which the pipeline has another scheduler or an additional adapter.

        Args:
            scheduler: the name of a scheduler class of diffusers. It gets the configuration of the
                pipeline's scheduler. None keeps that scheduler.
            adapter: the name of a LoRA adapter of the denoiser, which is active in addition to the
                others. None adds no adapter.
        """

    def without(self, adapter: str | None) -> contextlib.AbstractContextManager:
        """Open a context in which this adapter is not active."""

    def identity(self, **settings: object) -> str | None:
        """Return a digest of everything that an unsteered run with these settings and its score
        depend on, or None if that is not known."""

    def ending(self, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Run without steering. Return the final latents and score_B, the negative loss of the
        decoded images."""

    def through(
        self,
        of: torch.Tensor | object,
        *,
        gradient: bool = True,
        behind: Given = None,
        **settings: object,
    ) -> Gradient:
        """Run without steering. Return the objective of the finished images, and its gradient.

        Args:
            of: what the gradient is with respect to: the initial latents, which are among the
                settings too, or a context that `conditioning` opened, for its shift.
            gradient: whether the gradient is needed. If not, its value is None.
            behind: as in `sample`.
            **settings: the arguments of the pipeline.
        """

    def rank(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the score_B of finished images: the objective with its sign changed, so higher is
        better."""

    def candidate(self, score_B: torch.Tensor, better_B: torch.Tensor | None = None) -> None:
        """Add the scores of one candidate of each image to the report.

        Args:
            score_B: the scores.
            better_B: the images whose latest candidate is the best so far. The report keeps the
                trace of the latest run for them, and the earlier trace for the others.
        """


@dataclass(frozen=True, kw_only=True)
class Method:
    """The base class of all methods. Its fields say when a method acts.

    Args:
        window: the lowest and the highest noise level at which the method acts: 1 is pure noise, 0
            is clean.
        every: act at every k-th step of the window. A method that `holds` also moves at the steps
            in between, by `hold`.

    Raises:
        UsageError: a value is out of range, or the method acts at no step or at all steps, and so
            takes no `window` and no `every`.
    """

    name: ClassVar[str]
    by_call: ClassVar[bool] = False  # whether only s(…) can run it
    of_images: ClassVar[bool] = False  # whether it looks at finished images, not at videos
    differentiates: ClassVar[bool] = False  # whether it takes gradients through the denoiser
    prepares: ClassVar[bool] = False  # whether it steers before the run that draws the image
    fades: ClassVar[bool] = False  # whether the judge can reduce the length of its moves
    holds: ClassVar[bool] = False  # whether it also moves between the evaluations that `every` sets
    windowed: ClassVar[bool] = True  # whether `window` and `every` can have other values

    window: tuple[float, float] = WINDOW
    every: int = 1

    def __post_init__(self) -> None:
        window = self.window
        pair = isinstance(window, (tuple, list)) and len(window) == 2
        if not (pair and all(map(_is_number, window)) and 0 <= window[0] < window[1] <= 1):
            raise UsageError(f"The window lies in [0, 1], the lower first, not {window}.")
        object.__setattr__(self, "window", tuple(window))
        self.whole(1, "every")
        if not self.windowed and (self.every != 1 or self.window != WINDOW):
            raise UsageError(f"{self.name} takes no window and no every: leave them out.")

    def at_least(self, low: float, *names: str) -> None:
        """Raise UsageError unless these fields are finite numbers of at least `low`."""
        for name in names:
            value = getattr(self, name)
            if not (_is_number(value) and value >= low):
                raise UsageError(f"`{name}` must be a number from {low}, not {value!r}.")

    def whole(self, low: int, *names: str) -> None:
        """Raise UsageError unless these fields are whole numbers from `low` to 10,000."""
        for name in names:
            value = getattr(self, name)
            if not (type(value) is int and low <= value <= MOST):
                raise UsageError(
                    f"`{name}` must be a whole number from {low} to {MOST}, not {value!r}."
                )

    @property
    def idle(self) -> bool:
        """Return whether the method changes no bit."""
        return False

    @property
    def needs_gradient(self) -> bool:
        """Return whether it takes the objective's gradient."""
        return True

    @property
    def taped(self) -> bool:
        """Return whether a run can continue from a tape, because the method keeps nothing between
        steps, or keeps it in `Run.kept`."""
        return False

    @property
    def runs(self) -> int:
        """Return the approximate number of runs of the pipeline for one image."""
        return 1

    @property
    def candidates(self) -> int:
        """Return the number of samples that the method draws for each image."""
        return 1

    def options(self) -> dict[str, object]:
        """Return the fields that differ from their defaults, by name."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def covers(self, noise: float) -> bool:
        """Return whether a noise level is in the window."""
        return self.window[0] <= noise <= self.window[1]

    def check(self, pipe: object) -> None:
        """Raise ClipguideError if the method cannot steer this pipeline."""

    def start(self, run: Run) -> Callable[[At], Outcome]:
        """Prepare a run of the pipeline. Return a function that is called after each evaluation of
        the denoiser in the window. It takes the state `at` of the step and returns an `Outcome`."""
        raise NotImplementedError

    def hold(self, run: Run, at: At) -> Outcome:
        """Return the outcome of an evaluation between two at which the method acts, if it
        `holds`."""
        raise NotImplementedError

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return a function that changes the scheduler's new sample before the pipeline gets it, or
        None to keep the sample. It is called at every evaluation, with the inputs `at` of the
        scheduler."""
        return None

    def repeats(self) -> Repeats | None:
        """Return an object that makes the scheduler take each step several times, or None.

        "rollover" returns one, and "shortcut" and "backprop" with `travel` above 1 do.
        """
        return None

    def call(self, sampler: Sampler, **settings: object) -> object:
        """Run the pipeline with its own arguments, and return its result."""
        return sampler.sample(by=self, **settings)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
