"""Particles: Feynman-Kac steering, sequential Monte Carlo over the samples of one prompt.

Source: Singhal et al. 2025 (FK steering, arXiv 2501.06848, algorithm 1). The batch has `number`
particles of each prompt (`num_images_per_prompt`). At each evaluation in the window, the reward of
a particle is r = −loss(decode(x0)), and its log weight grows by its potential (their section 3.2):

    difference  λ r − λ' r'        max  λ max(r so far)        sum  λ Σ (r so far)

λ is `sharpness` times a factor that rises to 1. λ' and r' are those of the evaluation before. At
the last evaluation in the window, the potentials max and sum correct the sum of a particle's
potentials to λ r, and the particles are always resampled. They therefore sample from p(x0) e^{λ r}.
`difference` does so too with a `threshold` of 1. With a smaller one, the weights that are left at
the end are not used.

The factor is 1 by default. With `rising` ρ it is min(1, 2^(k/(ρT)) − 1) at evaluation k of T. This
is the tempering min(1, (1 + γ)^k − 1) of DAS (Kim et al. 2025, arXiv 2501.05803), with the γ for
which the factor reaches 1 after the share ρ of the run. Early estimates are blurred, and count less
with a rising factor. Zhang et al. 2026 (arXiv 2505.23614v2, algorithm 3) combine "max", a rising
factor and the resampling scheme "ssp".

If the effective sample size (Σw)²/Σw² is below `threshold` · number, the particles are resampled
(`guidance/resampling.py`), and their weights are equal again. The history of the scheduler is
copied with each particle. A particle whose reward is NaN has the weight 0.

Copies of a particle become different only if the sampler adds noise. If a sampler of first order
adds none, its step is replaced by the stochastic step with the same marginals
(`guidance/stochastic.py`), with η = `eta`.

Shapes: B particles, K of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError, close_matches
from ..contract import Method
from ..noise_levels import level, next_level
from ..resampling import RESAMPLING
from ..run import At, Outcome, Run
from ..schedulers import first_order, stochastic
from ..stochastic import spread_of, stochastic_step

POTENTIALS = ("difference", "max", "sum")


@dataclass(frozen=True, kw_only=True)
class Particles(Method):
    """Sample `number` particles for each prompt, and resample them by their rewards.

    It needs no gradient, only forward passes of the CLIP. `every` is 3 by default.

    Args:
        number: the number of particles of each prompt.
        potential: what the weight of a particle grows with: the change of its reward
            ("difference"), its highest reward so far ("max"), or the "sum" of its rewards.
        sharpness: λ, how strongly better particles are preferred. A difference of 1/λ in the reward
            changes the weight by a factor of e.
        rising: the share of the run after which λ has its full value, from 0 to 1. With 0, it has
            the full value from the start.
        threshold: resample if the effective share of particles, (Σw)² / (number · Σw²), is below
            this.
        resampling: the resampling scheme: "systematic", "residual" or "ssp".
        eta: the amount of noise to add in each step of a sampler that adds none, from 0 to 1.
    """

    name: ClassVar[str] = "particles"

    number: int = 4
    potential: str = "difference"
    sharpness: float = 100.0
    rising: float = 0.0
    threshold: float = 0.5
    resampling: str = "systematic"
    eta: float = 1.0
    every: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(2, "number")
        self.at_least(0, "sharpness", "rising", "threshold", "eta")
        for name in ("rising", "eta"):
            if getattr(self, name) > 1:
                raise UsageError(f"{name} must be from 0 to 1, not {getattr(self, name)}.")
        for name, known in (("potential", POTENTIALS), ("resampling", RESAMPLING)):
            if getattr(self, name) not in known:
                near = close_matches(str(getattr(self, name)), known)
                raise UsageError(f"There is no {name} {getattr(self, name)!r}.{near}")

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def candidates(self) -> int:
        return self.number

    def check(self, pipe: object) -> None:
        scheduler = pipe.scheduler
        if not (stochastic(scheduler) or (self.eta and first_order(scheduler))):
            raise ClipguideError(
                f"{type(scheduler).__name__} is neither stochastic nor of first order, and copies "
                "of a particle would stay copies: use DDIM, Euler, Euler a or FlowMatchEuler."
            )

    def start(self, run: Run) -> Callable[[At], Outcome]:
        batch = len(run.streams)
        if batch % self.number:
            raise ClipguideError(
                f"{batch} samples are no groups of {self.number} particles: call the pipeline with "
                f"num_images_per_prompt={self.number}, or set `number`."
            )
        weights = Weights(batch)

        def act(at: At) -> Outcome:
            image_N3HW, loss_B = run.loss(at.x0)
            last = self.potential != "difference" and self._is_last(run, at)
            sharpness = self.sharpness * self.factor(at.index, run.total)
            weights.weigh(-loss_B.cpu().double(), self.potential, sharpness, last=last)
            index_B = self._resample(weights, run.streams, threshold=1.0 if last else None)
            model_output, sample = at.model_output, at.sample
            if index_B is not None:
                index_B = index_B.to(sample.device)
                model_output, sample = model_output[index_B], sample[index_B]
            return Outcome(model_output, sample, image_N3HW, loss_B, origin_B=index_B)

        return act

    def factor(self, index: int, total: int) -> float:
        """Return the factor of λ at evaluation `index`, from 0, of `total`."""
        if not self.rising:
            return 1.0
        return min(1.0, 2 ** ((index + 1) / (self.rising * max(1, total))) - 1)

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Make the step of this evaluation stochastic, if the sampler is not."""
        if stochastic(run.scheduler, at.eta) or not self.eta:
            return None
        here = at.level
        noise = here.epsilon(here.x0(at.model_output, at.sample), at.sample)

        def part(previous: torch.Tensor) -> torch.Tensor:
            there = next_level(run.scheduler, at.timestep)
            spread = spread_of(here, there, self.eta)
            return stochastic_step(previous, noise, there, spread, run.noise_like(noise))

        return part

    def _is_last(self, run: Run, at: At) -> bool:
        """Return whether no later evaluation is due."""
        left = sum(self.covers(noise) for noise in _noises_after(run, at))
        return left < self.every

    def _resample(
        self, weights: Weights, streams: Sequence, threshold: float | None = None
    ) -> torch.Tensor | None:
        """Return the origin of each particle, or None if no group needs resampling."""
        threshold = self.threshold if threshold is None else threshold
        index_B = torch.arange(len(weights.log_B))
        for start in range(0, len(index_B), self.number):
            group = slice(start, start + self.number)
            log_K = weights.log_B[group]
            if not bool(log_K.isfinite().any()):  # no reward was a number
                weights.log_B[group] = 0.0
                continue
            weight_K = log_K.softmax(0)
            if 1 / weight_K.square().sum() >= threshold * self.number:
                continue
            index_B[group] = start + RESAMPLING[self.resampling](weight_K, streams[start])
            weights.log_B[group] = 0.0
        weights.take(index_B)
        changed = bool((index_B != torch.arange(len(index_B))).any())
        return index_B if changed else None


class Weights:
    """The weight of each particle, and its history: its last reward with its λ, its best reward,
    their sum, and the total of its potentials."""

    def __init__(self, batch: int) -> None:
        zeros = torch.zeros(batch, dtype=torch.float64)
        self.log_B = zeros.clone()
        self.before_B, self.sum_B, self.given_B = zeros.clone(), zeros.clone(), zeros.clone()
        self.best_B = torch.full_like(zeros, -torch.inf)

    def weigh(
        self, reward_B: torch.Tensor, potential: str, sharpness: float, *, last: bool = False
    ) -> None:
        """Weigh another reward of each particle; one of −inf is none, and weighs nothing."""
        good_B = reward_B.isfinite()
        self.best_B = torch.where(good_B, torch.maximum(self.best_B, reward_B), self.best_B)
        self.sum_B = torch.where(good_B, self.sum_B + reward_B, self.sum_B)
        tilted_B = sharpness * reward_B
        if potential == "difference":
            grown_B = tilted_B - self.before_B
            self.before_B = torch.where(good_B, tilted_B, self.before_B)
        elif last:
            grown_B = tilted_B - self.given_B
        else:
            grown_B = sharpness * (self.best_B if potential == "max" else self.sum_B)
        self.given_B = torch.where(good_B, self.given_B + grown_B, self.given_B)
        self.log_B = torch.where(good_B, self.log_B + grown_B, -torch.inf)

    def take(self, index_B: torch.Tensor) -> None:
        """Have each particle go on as the one that it comes from."""
        for name in ("before_B", "sum_B", "given_B", "best_B"):
            setattr(self, name, getattr(self, name)[index_B])


def _noises_after(run: Run, at: At) -> list[float]:
    """Return the noise levels of the evaluations after this one."""
    scheduler, times = run.scheduler, run.scheduler.timesteps
    here = getattr(scheduler, "_step_index", None)
    if here is None:
        now = float(torch.as_tensor(at.timestep).flatten()[0])
        here = next((i for i, t in enumerate(times) if float(t) == now), at.index)
    found, kept = [], getattr(scheduler, "_step_index", None)
    try:
        for place in range(here + 1, min(len(times), here + run.total - at.index)):
            if kept is not None:
                scheduler._step_index = place
            found.append(level(scheduler, times[place]).noise)
    finally:
        if kept is not None:
            scheduler._step_index = kept
    return found
