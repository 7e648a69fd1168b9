"""Embedding: move the embedding of the prompt during sampling, and not the latents.

Sources: DATE (Na et al., NeurIPS 2025, arXiv 2510.23974, eq. 7), which updates the text embedding
at sampling steps by a reward of x0, and Null-TTA (Kim et al., CVPR 2026, arXiv 2511.20889), which
updates the embedding of the empty prompt. At each evaluation in the window,

    c <- c − rate · rms(c₀) · g / rms(g),    g = ∇ over c of loss(decode(x0(x_t, c))).

Each rms is over one sample, and c₀ is the embedding of the pipeline. DATE's step is ρ g / ‖g‖, so
ρ = rate · ‖c₀‖; `rate` has no unit. DATE evaluates the denoiser again with the new c. Here, the new
c applies from the next evaluation on, so a step needs no second evaluation. Null-TTA takes several
steps at each evaluation, and penalises the distance of c from c₀, and of the predicted noise from
that of c₀ (eq. 25). This is not implemented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..conditioning import checked
from ..contract import Method
from ..precision import LEAST, along, rms
from ..run import At, Outcome, Run


@dataclass(frozen=True, kw_only=True)
class Embedding(Method):
    """Move the embedding of the prompt along the gradient at each step. Run it with `s(…)`.

    Args:
        rate: the length of a move, as a fraction of the rms of the embedding; 0 changes no bit.
        of: the embedding to move: "prompt"; "null" for the empty prompt, which needs
            classifier-free guidance; or "maps" for the maps of the embedded generator.
    """

    name: ClassVar[str] = "embedding"
    by_call: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True
    fades: ClassVar[bool] = True

    rate: float = 0.1
    of: str = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "rate")
        checked(self.of)

    @property
    def idle(self) -> bool:
        return not self.rate

    def start(self, run: Run) -> Callable[[At], Outcome]:
        shift = run.memory

        def act(at: At) -> Outcome:
            seen = run.gradient(at.x0, of=shift.shift)
            size_B = rms(seen.value)
            finite_B = seen.value.flatten(1).isfinite().all(1)
            length_B = self.rate * run.weight * shift.size_B / size_B.clamp_min(LEAST)
            if run.factor_B is not None:
                length_B = length_B * run.factor_B.to(length_B.device)
            step = along(length_B, seen.value) * torch.nan_to_num(seen.value, 0.0, 0.0, 0.0)
            step = torch.where(along(finite_B, step), step, 0.0)
            shift.shift = (shift.shift - step).detach().requires_grad_()
            return Outcome(
                at.model_output,
                at.sample,
                image_N3HW=seen.image_N3HW,
                loss_B=seen.loss_B,
                gradient_B=size_B,
                finite_B=finite_B,
            )

        return act

    def call(self, sampler, **settings):
        if self.idle:
            return sampler.sample(by=self, **settings)
        with sampler.conditioning(self.of) as shift:
            return sampler.sample(by=self, **settings, differentiable=True, memory=shift)
