"""Make a deterministic step of first order stochastic, with the same marginals.

It is the η of DDIM (Song et al. 2021, eq. 16), which holds for any α and σ, also for flow models:

    x_s <- x_s + (√(σ_s² − s²) − σ_s)·ε̂ + s·z,    s² = η² (σ_t² − (α_t/α_s)² σ_s²) σ_s²/σ_t².

Tensors: B samples, ... the rest of a latent's shape.
"""

from __future__ import annotations

import math

import torch

from .levels import Level
from .precision import widen


def spread_of(here: Level, there: Level, eta: float) -> float:
    """Return η times the standard deviation of x_s given x_t and x0. This is the new noise that a
    step adds."""
    ratio = here.alpha / there.alpha if there.alpha else 0.0
    forward = max(0.0, here.sigma**2 - (ratio * there.sigma) ** 2)
    return eta * math.sqrt(forward) * there.sigma / here.sigma


def stochastic_step(
    previous: torch.Tensor, noise: torch.Tensor, there: Level, spread: float, z: torch.Tensor
) -> torch.Tensor:
    """Return the sample of the deterministic step, with `spread` of its noise ε̂ replaced by new
    noise z, in float32 or a more exact dtype."""
    keep = math.sqrt(max(0.0, there.sigma**2 - spread**2)) - there.sigma
    return widen(previous) + (keep * noise + spread * z) / there.scale
