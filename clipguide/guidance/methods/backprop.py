"""Backprop: the shortcut's move along a gradient that went through the denoiser.

Chung et al. 2023 (DPS, eq. 16) and Bansal et al. 2023 (Universal Guidance): g = ∇ over x_t of
loss(decode(x0(x_t))), so the denoiser says which changes of x0 it would believe. TFG (Ye et al.
2024) holds both gradients, and its names are kept: `rho` is the step along the one through the
denoiser, `mu` along the one at x0, `inner` is N_iter, `travel` N_recur. Here each is a multiple of
the strength, of unit gradients:

    x0 <- x0 − strength · sin(πn/2) · rms(x0) · (ρ·ĝ(x_t) + μ·ĝ(x0)),    rms(ĝ) = 1.

TFG adds ρ's step to the sample and μ's to x0, the noise kept (`fixed="noise"`); with
`fixed="sample"`, the default, both move x0 and the noise gives way.

The denoiser runs with gradients, checkpointed where it can; the first evaluation, whose sample
nothing was computed from, takes the gradient at x0 alone.
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
    """Move x0 along ρ·ĝ(x_t) + μ·ĝ(x0). Run it with `s(…)`.

    Args:
        rho: the weight of the gradient through the denoiser, as a multiple of the strength.
        mu: the weight of the gradient at x0, as a multiple of the strength.
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
            raise UsageError("One of `rho` and `mu` must be above 0.")

    def ways(self, run: Run, at: At) -> list[Way]:
        if not (self.rho and at.x0.requires_grad):
            return [(self.mu or self.rho, run.gradient)]
        through = run.gradient(at.x0, of=at.sample)

        def same(x0: torch.Tensor) -> Gradient:
            return through

        return [(self.rho, same)] + ([(self.mu, run.gradient)] if self.mu else [])

    def call(self, sampler, **settings):
        return sampler.sample(by=self, **settings, differentiable=not self.idle)
