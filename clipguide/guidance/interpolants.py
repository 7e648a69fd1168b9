"""Sample a flow model at the noise levels of a variance-preserving diffusion.

A flow model has x_t = (1 − t)·x0 + t·ε. Kim et al. 2025 (RBF, arXiv 2503.19385, "Inference-time
interpolant conversion") sample it along the path of a variance-preserving diffusion (Song et al.
2021, with β from 0.1 to 20, as in their code):

    x̄_r = ᾱ_r x0 + σ̄_r ε,    T = ½(20 − 0.1)·r² + 0.1·r,    ᾱ = e^(−T/2),    σ̄ = √(1 − e^(−T)),

in even steps of r from 1 to 0. Their code takes r = √(1 − u²), in even steps of u from 0. Both
interpolants are the same process. At the t with the same ratio of signal to noise, t = σ̄/(ᾱ + σ̄),
x̄_r is x_t times ᾱ + σ̄ = σ̄/t. The stochastic step of `stochastic` depends only on ratios, so it is
the same for both (tests/test_interpolants.py). Only the noise levels differ: more of them are near
pure noise, where proposals differ most. The diffusion coefficient of their SDE can be chosen:
theirs is 3t², and here it is that of DDIM's η.
"""

from __future__ import annotations

import math

import torch

from . import schedulers

LEAST, MOST = 0.1, 20.0  # of β


def variance_preserving(sigmas: torch.Tensor) -> torch.Tensor:
    """Return levels t of a flow, from the first of these to the last, even in r; both ends stay.

    Args:
        sigmas: falling from 1 or less to 0 or more.
    """
    first, last = (_r(float(end)) for end in (sigmas[0], sigmas[-1]))
    steps = len(sigmas) - 1
    inner = [_t(first + (last - first) * k / steps) for k in range(1, steps)]
    between = sigmas.new_tensor(inner)
    return torch.cat([sigmas[:1], between, sigmas[-1:]])


def visit(scheduler: object) -> bool:
    """Make a flow's scheduler, whose timesteps are set, use these levels. Return whether it is a
    flow's with its own levels."""
    if schedulers.row(scheduler).where is not schedulers.FLOW or len(scheduler.sigmas) < 3:
        return False
    before = scheduler.sigmas
    scheduler.sigmas = variance_preserving(before)
    scale = scheduler.timesteps[0] / before[0].to(scheduler.timesteps)
    scheduler.timesteps = (scheduler.sigmas[:-1].to(scheduler.timesteps) * scale).to(
        scheduler.timesteps
    )
    return True


def _t(r: float) -> float:
    """Return the time of the flow at which it has the same signal-to-noise ratio as the diffusion
    at r."""
    total = 0.5 * (MOST - LEAST) * r * r + LEAST * r
    alpha, sigma = math.exp(-total / 2), math.sqrt(-math.expm1(-total))
    return sigma / (alpha + sigma)


def _r(t: float) -> float:
    """Return the r of a time of the flow, at most 1."""
    if t >= 1:
        return 1.0
    total = math.log1p((t / (1 - t)) ** 2)  # 1/ᾱ² = 1 + (σ̄/ᾱ)²
    slope = MOST - LEAST
    return min(1.0, (math.sqrt(LEAST**2 + 2 * slope * total) - LEAST) / slope)
