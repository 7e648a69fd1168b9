"""Particles: Feynman-Kac steering, sequential Monte Carlo over the samples of one prompt.

Singhal et al. 2025. The batch holds `number` particles of each prompt (`num_images_per_prompt`).
At each evaluation that is due, a particle's reward is r = −loss(decode(x0)), and its log weight
grows by the potential (their section 3.2), λ being `sharpness`:

    difference  λ (r − r before)      max  λ max(r so far)      sum  λ Σ (r so far)

When the effective sample size (Σw)²/Σw² falls below `threshold` · number, particles are drawn anew
by systematic resampling (Kitagawa 1996), and their weights are equal again. The scheduler's
history goes with them.

Copies part only if the sampler is stochastic. Where it is not, but of first order, its step is
replaced by the stochastic one of the same marginals (`guidance/stochastic.py`) with η = `eta`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError, close_matches
from ..contract import At, Method, Outcome, Run
from ..schedulers import first_order, next_level, permute, stochastic
from ..stochastic import spread_of, stochastic_step

POTENTIALS = ("difference", "max", "sum")


@dataclass(frozen=True, kw_only=True)
class Particles(Method):
    """`number` particles a prompt, resampled by their rewards; forward passes of the CLIP only."""

    name: ClassVar[str] = "particles"

    number: int = 4
    potential: str = "difference"
    sharpness: float = 100.0
    threshold: float = 0.5
    eta: float = 1.0
    every: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(2, "number")
        self.at_least(0, "sharpness", "threshold", "eta")
        if self.eta > 1:
            raise UsageError(f"eta must be from 0 to 1, not {self.eta}.")
        if self.potential not in POTENTIALS:
            near = close_matches(self.potential, POTENTIALS)
            raise UsageError(f"There is no potential {self.potential!r}.{near}")

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
        state = {"weight": torch.zeros(batch), "reward": torch.zeros(batch), "first": True}

        def act(at: At) -> Outcome:
            image_N3HW, loss_B = run.loss(at.x0)
            self._weigh(state, -loss_B.cpu().double())
            index_B = self._resample(state, run.streams)
            model_output, sample = at.model_output, at.sample
            if index_B is not None:
                index_B = index_B.to(sample.device)
                model_output, sample = model_output[index_B], sample[index_B]
                permute(run.scheduler, index_B)
            return Outcome(model_output, sample, image_N3HW, loss_B)

        return act

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Makes the step of this evaluation stochastic, if the sampler is not."""
        if stochastic(run.scheduler, at.eta) or not self.eta:
            return None
        here = at.level
        noise = here.epsilon(here.x0(at.model_output, at.sample), at.sample)

        def part(previous: torch.Tensor) -> torch.Tensor:
            there = next_level(run.scheduler, at.timestep)
            spread = spread_of(here, there, self.eta)
            return stochastic_step(previous, noise, there, spread, run.noise_like(noise))

        return part

    def _weigh(self, state: dict, reward_B: torch.Tensor) -> None:
        before_B = state["reward"]
        if state["first"]:
            before_B = torch.zeros_like(reward_B) if self.potential != "max" else reward_B
        if self.potential == "difference":
            state["weight"] = state["weight"] + self.sharpness * (reward_B - before_B)
            state["reward"] = reward_B
        elif self.potential == "max":
            state["reward"] = torch.maximum(before_B, reward_B)
            state["weight"] = state["weight"] + self.sharpness * state["reward"]
        else:
            state["reward"] = before_B + reward_B
            state["weight"] = state["weight"] + self.sharpness * state["reward"]
        state["first"] = False

    def _resample(self, state: dict, streams) -> torch.Tensor | None:
        """Where each particle comes from now; None if no group needs it."""
        index_B = torch.arange(len(state["weight"]))
        for start in range(0, len(index_B), self.number):
            group = slice(start, start + self.number)
            weight_K = state["weight"][group].softmax(0)
            if 1 / weight_K.square().sum() >= self.threshold * self.number:
                continue
            offset = torch.rand((), generator=streams[start], dtype=torch.float64)
            place_K = (torch.arange(self.number) + offset) / self.number
            chosen_K = torch.searchsorted(weight_K.cumsum(0), place_K).clamp_max(self.number - 1)
            index_B[group] = start + chosen_K
            state["weight"][group] = 0.0
        state["reward"] = state["reward"][index_B]
        changed = bool((index_B != torch.arange(len(index_B))).any())
        return index_B if changed else None
