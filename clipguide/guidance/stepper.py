"""Call the scheduler's own step with the outcome of a method.

A method computes in float32. If it moved x0, the scheduler also steps in float32, so that small
moves are not lost to rounding. The pipeline gets the result in the dtype of its sample.

Shapes: B samples, ... the rest of a latent's shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .precision import widen
from .run import At, Outcome, Run

After = Callable[[torch.Tensor], torch.Tensor]


class Stepper:
    """The steps of one run.

    Args:
        run: the run.
        differentiable: whether gradients go through the denoiser. The history of the scheduler then
            keeps no graph, and each sample is a leaf from which the next evaluation starts.

    `last_x0` is the clean latent after the latest step. If the sample is still noisy, it is the x0
    of the evaluation before.
    """

    def __init__(self, run: Run, *, differentiable: bool) -> None:
        self._run, self._differentiable = run, differentiable
        self._wide = False  # whether a step was in float32: its history is from then on
        self.last_x0: torch.Tensor | None = None

    def __call__(
        self,
        original: Callable,
        at: At,
        outcome: Outcome,
        after: After | None,
        args: tuple,
        kwargs: dict,
    ) -> object:
        """Call the step, and return what the scheduler returns.

        Args:
            original: the `step` of the scheduler.
            at: the evaluation.
            outcome: what to continue with.
            after: a function that changes the new sample, or None.
            args: further arguments of `step`.
            kwargs: further arguments of `step`, by name.
        """
        model_output, sample = outcome.model_output, outcome.sample
        if self._differentiable:
            model_output, sample = model_output.detach(), sample.detach()
        if (model_output.dtype, sample.dtype) != (at.model_output.dtype, at.sample.dtype):
            model_output, sample, self._wide = widen(model_output), widen(sample), True
        stepped = original(model_output, at.timestep, sample, *args, **kwargs)
        previous = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        previous = self._previous(previous, after, at)
        if isinstance(stepped, tuple):
            return (previous, *(self._narrow(value, at) for value in stepped[1:]))
        for name, value in list(vars(stepped).items()):
            if name != "prev_sample":
                setattr(stepped, name, self._narrow(value, at))
        stepped.prev_sample = previous
        return stepped

    def _previous(self, previous: torch.Tensor, after: After | None, at: At) -> torch.Tensor:
        """Return the new sample of the scheduler, as the pipeline gets it."""
        run = self._run
        if after is not None:
            previous, self._wide = after(previous), True
        if run.repeats is not None and run.repeats.returns(at.index):
            previous = run.repeats.back(at, previous, run.noise_like(previous))
            self._wide = True
        previous = self._narrow(previous, at)
        timestep = torch.as_tensor(at.timestep).flatten()[0]  # some give one a sample
        final = float(timestep) == float(run.scheduler.timesteps[-1])  # else it is noisy still
        self.last_x0 = previous if final else at.x0
        if self._differentiable:
            previous = previous.detach().requires_grad_(at.index < run.total - 1)
        return previous

    def _narrow(self, value: object, at: At) -> object:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(at.sample.dtype) if self._wide and floating else value
