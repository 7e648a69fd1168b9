"""Backprop: move x0 along the gradient of the objective through the denoiser.

Sources: Chung et al. 2023 (DPS, eq. 16) and Bansal et al. 2023 (Universal Guidance). The gradient
is that of loss(decode(x0(x_t))) with respect to x_t. TFG (Ye et al. 2024) uses two gradients, and
the names of the arguments are those of TFG: `rho` is the weight of the gradient through the
denoiser, `mu` that of the gradient at x0, `inner` is N_iter, and `travel` is N_recur. Here each
weight is a multiple of the strength, and the gradients have an rms of 1:

    x0 <- x0 − strength · sin²(πn/2) · rms(x0) · (ρ·ĝ(x_t) + μ·ĝ(x0)),    rms(ĝ) = 1.

TFG adds the ρ step to the sample and the μ step to x0, and keeps the noise (`fixed="noise"`). With
`fixed="sample"`, the default, both steps move x0, and the noise changes.

The denoiser runs with gradients, and with gradient checkpointing if the model supports it. At the
first evaluation, the sample does not depend on an earlier one, so only the gradient at x0 is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import UsageError
from ..descent import Way
from ..run import At, Gradient, Run
from .shortcut import Shortcut


@dataclass(frozen=True, kw_only=True)
class Backprop(Shortcut):
    """Move x0 along the gradient through the denoiser. Run it with `s(…)`.

    The direction is ρ·ĝ(x_t) + μ·ĝ(x0), where ĝ(x_t) is the gradient through the denoiser and ĝ(x0)
    the gradient at x0, each with an rms of 1. The other arguments are those of `Shortcut`.

    Args:
        rho: ρ, from 0.
        mu: μ, from 0. At least one of `rho` and `mu` must be above 0.
    """

    name: ClassVar[str] = "backprop"
    by_call: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    rho: float = 1.0
    mu: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "rho", "mu")
        if not self.rho + self.mu:
            raise UsageError("At least one of `rho` and `mu` must be above 0.")

    def ways(self, run: Run, at: At) -> list[Way]:
        if not (self.rho and at.x0.requires_grad):
            return [(self.mu or self.rho, run.gradient)]
        through = run.gradient(at.x0, of=at.sample)

        def same(x0: torch.Tensor) -> Gradient:
            return through

        return [(self.rho, same)] + ([(self.mu, run.gradient)] if self.mu else [])

    def call(self, sampler, **settings):
        return sampler.sample(by=self, **settings, differentiable=not self.idle)
