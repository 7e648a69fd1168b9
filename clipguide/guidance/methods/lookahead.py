"""Lookahead: a few quick samples say where the good images are; no gradient at all.

Kim et al. 2026 (LiDAR sampling, arXiv 2602.03211). With samples x0ᵏ of the model itself and their
scores r_k, the expected future reward of x_t is log Σ w_k exp(λ r_k), w_k ∝ p(x_t | x0ᵏ), the
forward kernel N(α x0ᵏ, σ²). Its gradient is closed, and Tweedie's formula makes it a move of x0:

    x0 <- x0 + scale · (Σ w̃_k x0ᵏ − Σ w_k x0ᵏ),    w̃_k ∝ w_k exp(λ r_k).

In d dimensions the exact kernel falls on one sample alone: `temperature` divides its exponent by
temperature · d. The scores are standardised over the samples, so that λ (`sharpness`) has no unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import UsageError
from ..contract import At, Method, Outcome, Run, along
from ..generators import reseeded, restarted
from ..levels import widen


@dataclass(frozen=True, kw_only=True)
class Lookahead(Method):
    """Draw and score `number` short samples of `steps` steps, then steer the run towards the best.

    It needs no gradient, so any objective works. Run it with `s(…)`.
    """

    name: ClassVar[str] = "lookahead"
    fades: ClassVar[bool] = True
    by_call: ClassVar[bool] = True

    number: int = 4
    steps: int = 6
    scale: float = 1.0
    sharpness: float = 4.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(2, "number")
        self.whole(1, "steps")
        self.at_least(0, "scale", "sharpness", "temperature")
        if not self.temperature > 0:
            raise UsageError(f"The temperature must be above 0, not {self.temperature}.")

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def idle(self) -> bool:
        return not self.scale

    def start(self, run: Run) -> Callable[[At], Outcome]:
        x0_KB, score_KB = run.memory

        def act(at: At) -> Outcome:
            delta = run.weight * self.scale * self.move(at, x0_KB, score_KB)
            if run.factor_B is not None:
                delta = along(run.factor_B, delta) * delta
            return Outcome(at.level.move(at.model_output, delta), at.sample, delta=delta)

        return act

    def move(self, at: At, x0_KB: torch.Tensor, score_KB: torch.Tensor) -> torch.Tensor:
        """Σ w̃_k x0ᵏ − Σ w_k x0ᵏ for each sample of the batch."""
        level = at.level
        x = at.sample.to(x0_KB) * level.scale
        error_KB = (x - level.alpha * x0_KB).square().flatten(2).mean(2)
        kernel_KB = -error_KB / (2 * max(level.sigma, 1e-4) ** 2 * self.temperature)
        tilted_KB = (kernel_KB + self.sharpness * score_KB).softmax(0)
        weight_KB = tilted_KB - kernel_KB.softmax(0)
        return sum(along(weight_B, x0) * x0 for weight_B, x0 in zip(weight_KB, x0_KB))

    @property
    def runs(self) -> int:
        return self.number + 1

    def call(self, sampler, **settings):
        generator = settings.get("generator")
        x0s, scores = [], []
        for k in range(self.number):
            quick = {
                **{key: v for key, v in settings.items() if key not in ("timesteps", "sigmas")},
                "num_inference_steps": self.steps,
                "generator": reseeded(restarted(generator), k + 1),
            }
            x0, score_B = sampler.ending(**quick)
            x0s.append(x0)
            scores.append(score_B)
            sampler.candidate(score_B)
        score_KB = _finite(torch.stack(scores))
        score_KB = (score_KB - score_KB.mean(0)) / score_KB.std(0).clamp_min(1e-12)
        x0_KB = widen(torch.stack(x0s))
        return sampler.sample(by=self, **settings, memory=(x0_KB, score_KB.to(x0_KB)))


def _finite(score_KB: torch.Tensor) -> torch.Tensor:
    """Scores, those that are not finite as the least of the others of that image, or 0."""
    least_B = torch.where(score_KB.isfinite(), score_KB, torch.inf).amin(0)
    least_B = torch.where(least_B.isfinite(), least_B, 0.0)
    return torch.where(score_KB.isfinite(), score_KB, least_B)
