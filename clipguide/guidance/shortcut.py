"""The shortcut: move x0 along the objective's gradient there, and nowhere through the denoiser.

He et al. 2024, "Manifold preserving guided diffusion" (MPGD, algorithm 1 without its autoencoder
projection: the gradient is taken in the latent, eq. 8), and for flows Patel et al. 2024
(FlowChef). The step is unit-free instead of their learning rates:

    x0 <- x0 − strength · sin(πn/2) · rms(x0) · g / rms(g),    g = ∇ loss(decode(x0)),

each rms over one image. n is the noise level in [0, 1] of `Level.noise`; sin(πn/2) is σ where
α² + σ² = 1, so that late steps, which nothing repairs any more, move less. A sampler passes on the
share of a move that it denoises in that step, and these shares do not depend on the number of
steps in sum: one strength serves 10 steps and 100.

Shapes: B images, C channels, h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import UsageError
from ..objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """When and how far: at noise levels in `window` (1 pure noise, 0 clean), every `every`-th step
    of these, `inner` moves a step of `strength` in all. UsageError for values out of range."""

    strength: float
    window: tuple[float, float]
    every: int
    inner: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UsageError(
                f"The strength must be a number from 0, not {self.strength}; a part of negative "
                "weight repels."
            )
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise UsageError(f"The window lies in [0, 1], the lower first, not {self.window}.")
        if self.every < 1 or self.inner < 1:
            raise UsageError("`every` and `inner` must be at least 1.")

    def covers(self, noise: float) -> bool:
        """Whether a noise level is in the window."""
        return self.window[0] <= noise <= self.window[1]


@dataclass(frozen=True)
class Move:
    """What one step did: delta_BChw is added to x0; image_B3HW is the decoded x0 before it.

    Where `finite_B` is False the gradient was not a number, and the delta is 0.
    """

    delta_BChw: torch.Tensor
    image_B3HW: torch.Tensor
    loss_B: torch.Tensor
    gradient_B: torch.Tensor
    finite_B: torch.Tensor


def move(
    x0_BChw: torch.Tensor,
    *,
    noise: float,
    decode: Callable[[torch.Tensor], torch.Tensor],
    objective: Objective,
    generators: Sequence[torch.Generator],
    config: Shortcut,
) -> Move:
    """The move of x0 at a noise level. Loss and gradient reported are those of the first inner."""
    size = config.strength / config.inner * math.sin(noise * math.pi / 2)
    delta_BChw = torch.zeros_like(x0_BChw)
    first = None
    for _ in range(config.inner):
        image_B3HW, loss_B, gradient_BChw = _gradient(
            x0_BChw + delta_BChw, decode=decode, objective=objective, generators=generators
        )
        gradient_B = _rms(gradient_BChw)
        finite_B = gradient_B.isfinite()
        factor_B = size * _rms(x0_BChw) / gradient_B.clamp_min(1e-30)
        step_BChw = factor_B[:, None, None, None] * gradient_BChw
        delta_BChw -= torch.where(finite_B[:, None, None, None], step_BChw, 0.0)
        first = first or (image_B3HW, loss_B, gradient_B, finite_B)
    return Move(delta_BChw, *first)


def _gradient(
    x0_BChw: torch.Tensor,
    *,
    decode: Callable[[torch.Tensor], torch.Tensor],
    objective: Objective,
    generators: Sequence[torch.Generator],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """image_B3HW, loss_B and its gradient_BChw, whatever grad mode the pipeline runs in."""
    with torch.inference_mode(False), torch.enable_grad():
        x0_BChw = x0_BChw.clone().requires_grad_()
        image_B3HW = decode(x0_BChw)
        loss_B = objective(image_B3HW, generators)
        (gradient_BChw,) = torch.autograd.grad(loss_B.sum(), x0_BChw)
    return image_B3HW.detach(), loss_B.detach(), gradient_BChw


def _rms(x_BChw: torch.Tensor) -> torch.Tensor:
    """Root mean square_B of each image."""
    return x_BChw.flatten(1).square().mean(1).sqrt()
