"""Time travel: each step of a first-order sampler taken several times, noised back in between.

Lugmayr et al. 2022 (RePaint), Yu et al. 2023 (FreeDoM, algorithm 2): from the new sample x_s back
to x_t = (α_t/α_s) x_s + √(σ_t² − (α_t/α_s)² σ_s²) ε, the forward process between the two levels.
The entries of `scheduler.timesteps` that the pipeline reads are repeated.
"""

from __future__ import annotations

import functools
import math

import torch

from ..errors import ClipguideError
from .parameterisation import Level, next_level

TRAVELLERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)


def check(pipe: object) -> None:
    """ClipguideError if this pipeline's steps cannot be repeated."""
    name = type(pipe.scheduler).__name__
    if name not in TRAVELLERS:
        raise ClipguideError(
            f"Time travel needs a first-order sampler, and {name} is none: {', '.join(TRAVELLERS)}."
        )
    if hasattr(pipe, "get_timesteps"):
        raise ClipguideError(f"Time travel does not fit {type(pipe).__name__}, which skips steps.")


class Travel:
    """Repeats a scheduler's timesteps `times` times while it is open."""

    def __init__(self, scheduler: object, times: int) -> None:
        self.scheduler, self.times = scheduler, times
        original = scheduler.set_timesteps

        @functools.wraps(original)
        def set_timesteps(*args, **kwargs):
            original(*args, **kwargs)
            self._once = scheduler.timesteps
            scheduler.timesteps = scheduler.timesteps.repeat_interleave(times)
            self._rewind(0)

        self._own = scheduler.__dict__.get("set_timesteps")
        scheduler.set_timesteps = set_timesteps

    def close(self) -> None:
        """Undo."""
        del self.scheduler.set_timesteps
        if self._own is not None:
            self.scheduler.set_timesteps = self._own

    def settle(self) -> None:
        """The pipeline has its list: the scheduler gets back its own, to find its steps in."""
        self.scheduler.timesteps = self._once

    def returns(self, index: int) -> bool:
        """Whether the evaluation after the one at `index` takes the same step again."""
        return index % self.times < self.times - 1

    def back(
        self, index: int, timestep, here: Level, previous: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """The sample, noised from where the step of `index` led back to where it began."""
        there = next_level(self.scheduler, timestep)
        ratio = here.alpha / there.alpha
        spread = math.sqrt(max(0.0, here.sigma**2 - ratio**2 * there.sigma**2))
        self._rewind(index // self.times)
        return (ratio * there.scale * previous + spread * noise) / here.scale

    def _rewind(self, step: int) -> None:
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = step
