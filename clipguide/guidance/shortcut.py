"""The shortcut: move x0 along the objective's gradient there, and nowhere through the denoiser.

He et al. 2024, "Manifold preserving guided diffusion" (MPGD, algorithm 1 without its autoencoder
projection: the gradient is taken in the latent, eq. 8), and for flows Patel et al. 2024
(FlowChef). The step is unit-free instead of their learning rates:

    x0 <- x0 − strength · sin(πn/2) · rms(x0) · g / rms(g),    g = ∇ loss(decode(x0)),

each rms over one image. n is the noise level in [0, 1] of `Level.noise`; sin(πn/2) is σ where
α² + σ² = 1, so that late steps, which nothing repairs any more, move less. A sampler passes on the
share of a move that it denoises in that step, and these shares do not depend on the number of
steps in sum: one strength serves 10 steps and 100.

With `momentum` m the direction is m·d + g / rms(g), d that of the evaluation before (heavy ball).
With `travel` r each step is taken r times, noised back between them (FreeDoM, Yu et al. 2023,
section 4.3; RePaint, Lugmayr et al. 2022): `guidance/travel.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import UsageError
from . import travel
from .method import Method
from .run import At, Gradient, Outcome, Run, along, rms


@dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """Moves of x0 by `strength` · rms(x0) in all, in `inner` moves, along the gradient there: at
    the price of a decoder's and a CLIP's."""

    name: ClassVar[str] = "shortcut"

    strength: float = 0.1
    inner: int = 1
    momentum: float = 0.0
    travel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UsageError(
                f"The strength must be a number from 0, not {self.strength}; a part of negative "
                "weight repels."
            )
        if not 0 <= self.momentum < 1:
            raise UsageError(f"The momentum is at least 0 and less than 1, not {self.momentum}.")
        self.at_least(1, "inner", "travel")

    @property
    def idle(self) -> bool:
        return not self.strength

    @property
    def taped(self) -> bool:
        return not (self.momentum or self.called)

    def check(self, pipe: object) -> None:
        if self.travel > 1:
            travel.check(pipe)

    def travelling(self, scheduler: object) -> travel.Travel | None:
        return travel.Travel(scheduler, self.travel) if self.travel > 1 else None

    def start(self, run: Run) -> Callable[[At], Outcome]:
        direction = None

        def act(at: At) -> Outcome:
            nonlocal direction
            pulled = pull(
                at.x0,
                run.gradient,
                noise=at.level.noise,
                config=self,
                factor_B=run.factor_B,
                before=direction,
            )
            direction = pulled.direction
            return moved(at, pulled)

        return act


@dataclass(frozen=True)
class Pulled:
    """What one evaluation's moves did: `delta` is added to x0; `seen` is the first gradient, and
    `direction` the last, for the momentum of the next evaluation. Where `finite_B` is False a
    gradient was not a number, and nothing moved."""

    delta: torch.Tensor
    seen: Gradient
    gradient_B: torch.Tensor
    finite_B: torch.Tensor
    direction: torch.Tensor


def pull(
    x0: torch.Tensor,
    gradient: Callable[[torch.Tensor], Gradient],
    *,
    noise: float,
    config: Shortcut,
    factor_B: torch.Tensor | None = None,
    before: torch.Tensor | None = None,
) -> Pulled:
    """The moves of x0 at a noise level; factor_B scales them, `before` feeds the momentum."""
    size_B = config.strength / config.inner * math.sin(noise * math.pi / 2) * rms(x0)
    if factor_B is not None:
        size_B = size_B * factor_B.to(size_B)
    delta, direction, seen = torch.zeros_like(x0), before, []
    for _ in range(config.inner):
        seen.append(gradient(x0 + delta if seen else x0))
        gradient_B = rms(seen[-1].value)
        finite_B = gradient_B.isfinite()
        unit = torch.where(along(finite_B, x0), seen[-1].value, 0.0)
        unit = unit / along(rms(unit).clamp_min(1e-30), x0)
        if config.momentum and direction is not None:
            unit = unit + config.momentum * direction
            unit = unit / along(rms(unit).clamp_min(1e-30), x0)
        direction = unit
        delta = delta - along(size_B * finite_B, x0) * direction
    gradient_B = rms(seen[0].value)
    return Pulled(delta, seen[0], gradient_B, gradient_B.isfinite(), direction)


def moved(at: At, pulled: Pulled) -> Outcome:
    """The outcome of an evaluation whose x0 was moved."""
    return Outcome(
        model_output=at.level.move(at.model_output, pulled.delta),
        sample=at.sample,
        image_N3HW=pulled.seen.image_N3HW,
        loss_B=pulled.seen.loss_B,
        gradient_B=pulled.gradient_B,
        finite_B=pulled.finite_B,
        delta=pulled.delta,
    )
