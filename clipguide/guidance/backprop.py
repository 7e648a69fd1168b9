"""Backprop: the shortcut's move along a gradient that went through the denoiser.

Chung et al. 2023 (DPS, eq. 16) and Bansal et al. 2023 (Universal Guidance): g = ∇ over x_t of
loss(decode(x0(x_t))), so the denoiser says which changes of x0 it would believe. TFG (Ye et al.
2024) holds both gradients: with its names, `rho` weighs the one through the denoiser, `mu` the
one at x0 (both unit vectors here, each rms 1), `inner` is N_iter, `travel` N_recur.

The denoiser runs with gradients, checkpointed where it can; the first evaluation, whose sample
nothing was computed from, takes the gradient at x0 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..errors import UsageError
from .run import At, Gradient, Outcome, Run, along, rms
from .shortcut import Shortcut, moved, pull


@dataclass(frozen=True, kw_only=True)
class Backprop(Shortcut):
    """Moves of x0 along ρ·ĝ(x_t) + μ·ĝ(x0); run by `s(…)`."""

    name: ClassVar[str] = "backprop"
    called: ClassVar[bool] = True

    rho: float = 1.0
    mu: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "rho", "mu")
        if not self.rho + self.mu:
            raise UsageError("One of `rho` and `mu` must be above 0.")

    def start(self, run: Run) -> Callable[[At], Outcome]:
        direction = None

        def act(at: At) -> Outcome:
            nonlocal direction
            through = bool(self.rho) and at.x0.requires_grad
            seen = run.gradient(at.x0, of=at.sample) if through else None

            def gradient(x0: torch.Tensor) -> Gradient:
                if seen is None:
                    return run.gradient(x0)
                if not self.mu:
                    return seen
                there = run.gradient(x0)
                return replace(
                    there, value=self.rho * _unit(seen.value) + self.mu * _unit(there.value)
                )

            pulled = pull(
                at.x0.detach(),
                gradient,
                noise=at.level.noise,
                config=self,
                factor_B=run.factor_B,
                before=direction,
            )
            direction = pulled.direction
            return moved(replace(at, model_output=at.model_output.detach()), pulled)

        return act

    def call(self, steering, **settings):
        return steering.sample(by=self, **settings, differentiable=True)


def _unit(gradient: torch.Tensor) -> torch.Tensor:
    return gradient / along(rms(gradient).clamp_min(1e-30), gradient)
