"""The contract of a method: when it acts, what it does at a step, and how it runs the pipeline.

A step method acts at each evaluation of the denoiser, so the pipeline itself is steered. A call
method runs the pipeline its own way, by `s(…)` of `with steer(pipe, …) as s`. What a method is
given at a step, and what it gives back, is in `run`.

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
MOST = 10_000  # of a method's whole numbers


class Sampler(Protocol):
    """What a call method gets: the pipeline, which it runs."""

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
        """Run the pipeline once, steered by a method or none, with gradients or without, and return
        what it returns. `memory` is handed to the method's `start`. At the first step the
        generators of the call take the states of `behind`, if it is given."""

    def initial_noise(self, **settings: object) -> torch.Tensor:
        """Return the latents that the pipeline begins with, as its `latents` argument takes them.
        The generators of the call are then where its first step finds them."""

    def conditioning(self, of: str) -> contextlib.AbstractContextManager:
        """Open a context in which what the denoiser is conditioned on is moved: its `shift_BLD`, of
        the embedding of the "prompt" or of none, "null", whose rms is `size_B`."""

    def preview(self, *, until: float, by: Method | None, **settings: object) -> torch.Tensor:
        """Draw the share `until` of a run's steps, and return score_B of what x0 decodes to there.
        """

    def borrowing(
        self, *, scheduler: str | None, adapter: str | None
    ) -> contextlib.AbstractContextManager:
        """Open a context in which the pipeline has another scheduler, of a class of diffusers' made
        from the config of its own, and a LoRA adapter of its denoiser's beside those that are
        active."""

    def without(self, adapter: str | None) -> contextlib.AbstractContextManager:
        """Open a context in which that adapter is not active."""

    def identity(self, **settings: object) -> str | None:
        """Return a digest of what an unsteered run with these settings, and its score, depend on;
        None where that cannot be said."""

    def ending(self, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Run unsteered, and return the final latents, and score_B = −loss_B of what they decode
        to."""

    def through(
        self, latents: torch.Tensor, *, behind: Given = None, **settings: object
    ) -> Gradient:
        """Return the objective at the end of an unsteered run, and its gradient by the latents.
        `behind` is as in `sample`."""

    def rank(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return score_B of finished images, −objective: higher is better."""

    def candidate(self, score_B: torch.Tensor, better_B: torch.Tensor | None = None) -> None:
        """Report a candidate of each image. With `better_B`, the trace of the latest run is kept
        for these images, and the earlier trace for the others."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The base class of all methods. Its fields say when a method acts.

    Args:
        window: the noise levels to act at: 1 is pure noise, 0 is clean.
        every: act at every k-th step of the window.

    Raises:
        UsageError: a value is out of range.
    """

    name: ClassVar[str]
    by_call: ClassVar[bool] = False  # whether only s(…) can run it
    of_images: ClassVar[bool] = False  # whether it looks at finished images, not at videos
    differentiates: ClassVar[bool] = False  # whether it takes gradients through the denoiser
    fades: ClassVar[bool] = False  # whether its moves have a strength, which may fall to 0

    window: tuple[float, float] = WINDOW
    every: int = 1

    def __post_init__(self) -> None:
        window = self.window
        pair = isinstance(window, (tuple, list)) and len(window) == 2
        if not (pair and all(map(_is_number, window)) and 0 <= window[0] < window[1] <= 1):
            raise UsageError(f"The window lies in [0, 1], the lower first, not {window}.")
        object.__setattr__(self, "window", tuple(window))
        self.whole(1, "every")

    def at_least(self, low: float, *names: str) -> None:
        """Raise UsageError unless these fields are finite numbers from `low`."""
        for name in names:
            value = getattr(self, name)
            if not (_is_number(value) and value >= low):
                raise UsageError(f"`{name}` must be a number from {low}, not {value!r}.")

    def whole(self, low: int, *names: str) -> None:
        """Raise UsageError unless these fields are whole numbers from `low` to MOST."""
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
        """Return whether a run can continue from a tape: the method keeps nothing between steps."""
        return False

    @property
    def runs(self) -> int:
        """Return about how many runs of the pipeline an image takes."""
        return 1

    @property
    def candidates(self) -> int:
        """Return how many samples of an image it draws, in one batch or one after the other."""
        return 1

    def options(self) -> dict[str, object]:
        """Return the fields that differ from their defaults, for `configure`."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def covers(self, noise: float) -> bool:
        """Return whether a noise level is in the window."""
        return self.window[0] <= noise <= self.window[1]

    def check(self, pipe: object) -> None:
        """Raise ClipguideError if the method cannot steer this pipeline."""

    def start(self, run: Run) -> Callable[[At], Outcome]:
        """Begin a run of the pipeline. Return the function that acts at each due evaluation."""
        raise NotImplementedError

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Change the scheduler's new sample before the pipeline gets it, at every evaluation.

        None keeps the sample. `at` is as the scheduler sees it.
        """
        return None

    def repeats(self) -> Repeats | None:
        """Return what repeats steps of the scheduler while the context is open."""
        return None

    def call(self, sampler: Sampler, **settings: object) -> object:
        """Run the pipeline with its own arguments, and return its result."""
        return sampler.sample(by=self, **settings)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
