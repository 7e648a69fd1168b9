"""Time travel: take each step of a first-order sampler several times, with new noise in between.

Sources: Lugmayr et al. 2022 (RePaint), Yu et al. 2023 (FreeDoM, algorithm 2). The new sample x_s
becomes x_t = (α_t/α_s) x_s + √(σ_t² − (α_t/α_s)² σ_s²) ε, by the forward process between the two
levels. The entries of `scheduler.timesteps` that the pipeline reads are repeated.
"""

from __future__ import annotations

import math

import torch

from ..errors import ClipguideError
from .noise_levels import next_level
from .precision import widen
from .run import At

TRAVELLERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)


def check(pipe: object) -> None:
    """Raise ClipguideError if this pipeline's steps cannot be repeated."""
    name = type(pipe.scheduler).__name__
    if name not in TRAVELLERS:
        raise ClipguideError(
            f"Time travel needs a first-order sampler, and {name} is none: {', '.join(TRAVELLERS)}."
        )
    if hasattr(pipe, "get_timesteps"):
        raise ClipguideError(f"Time travel does not fit {type(pipe).__name__}, which skips steps.")


class Travel:
    """Repeat each timestep of a scheduler `times` times."""

    def __init__(self, times: int) -> None:
        self.times, self.once = times, None

    def enlarge(self, scheduler: object) -> None:
        """Repeat the timesteps that the pipeline will read."""
        self.scheduler, self.once = scheduler, scheduler.timesteps
        self.read = scheduler.timesteps = scheduler.timesteps.repeat_interleave(self.times)
        self.rewind(0)

    def begin(self, total: int) -> None:
        """Give the scheduler back its own list, to find its steps in: the pipeline has the repeated
        one."""
        if self.once is None:
            raise ClipguideError("Time travel repeats timesteps: set them inside the context.")
        self.scheduler.timesteps, self.total = self.once, total

    @property
    def steps(self) -> int:
        """Return how many steps there are, each once."""
        return self.total // self.times

    def returns(self, index: int) -> bool:
        """Return whether the evaluation after the one at `index` takes the same step again."""
        return index % self.times < self.times - 1

    def back(self, at: At, previous: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the sample with new noise, from the level after the step of `at` back to the level
        before it, in float32 or a more exact dtype."""
        here, there = at.level, next_level(self.scheduler, at.timestep)
        ratio = here.alpha / there.alpha
        spread = math.sqrt(max(0.0, here.sigma**2 - ratio**2 * there.sigma**2))
        self.rewind(at.index // self.times)
        return (ratio * there.scale * widen(previous) + spread * noise) / here.scale

    def rewind(self, step: int) -> None:
        """Make the scheduler take this step next."""
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = step
