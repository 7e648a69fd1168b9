"""Drafts: optimise what the denoiser is told by gradients through short runs, then draw once.

A draft is a run of a few steps from the initial noise of the image. Its gradient goes through the
whole run, as in ReNO (Eyring et al. 2024), but with respect to the conditioning c and not to the
noise. With Nesterov's momentum, where each rms is over one sample and c₀ is the conditioning of the
pipeline,

    c <- c − rate · rms(c₀) · d,    d = s + m·v,    v <- m·v + s,    s = g / rms(g).

The conditioning with the best objective so far is kept, beginning with c₀. The last run, with all
steps, draws the image from it and from the same noise.

Before that, `number` candidates are drafted in `candidate_steps`, from the seeds of `best-of`, and
the one that scores best is optimised.

The conditioning is the embedding of the prompt. A pipeline of two stages, such as unCLIP (Ramesh et
al. 2022), first draws another one from the prompt. That of the embedded generator is a map of what
is where: an update of it changes the composition, which the gradient at x0 does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError
from ..conditioning import MAPS, checked
from ..contract import Method
from ..generators import Given, chosen, one_seed, ranked, reseeded, restarted
from ..pipe_parts import call_signature
from ..precision import along, unit
from ..whole_runs import optimised

STEPS = "num_inference_steps"


@dataclass(frozen=True, kw_only=True)
class Drafts(Method):
    """Optimise the conditioning of the denoiser by gradients through short runs. Run it with
    `s(…)`.

    It takes no `window` and no `every`.

    Args:
        number: the number of candidates of each image.
        candidate_steps: the number of steps of the draft of a candidate.
        iterations: the number of updates of the conditioning. Each takes a draft with
            gradients.
        draft_steps: the number of steps of a draft with gradients.
        rate: the rms of an update, as a fraction of the rms of the conditioning; 0 changes no bit.
        momentum: Nesterov's momentum, from 0 to below 1.
        of: the conditioning: "prompt" or "null", as for `embedding`, or "maps", which the embedded
            generator has. The default is "maps" where there are maps, otherwise "prompt".
    """

    name: ClassVar[str] = "drafts"
    windowed: ClassVar[bool] = False
    by_call: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True
    prepares: ClassVar[bool] = True

    number: int = 8
    candidate_steps: int = 4
    iterations: int = 3
    draft_steps: int = 4
    rate: float = 0.04
    momentum: float = 0.9
    of: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(1, "number", "candidate_steps", "iterations", "draft_steps")
        self.at_least(0, "rate", "momentum")
        if self.momentum >= 1:
            raise UsageError(f"The momentum is at least 0 and less than 1, not {self.momentum}.")
        if self.of is not None:
            checked(self.of)

    @property
    def idle(self) -> bool:
        return not self.rate

    @property
    def runs(self) -> int:
        return self.iterations + 2 + (self.number if self.number > 1 else 0)

    def check(self, pipe: object) -> None:
        if STEPS not in call_signature(pipe).parameters:
            raise ClipguideError(
                f"{type(pipe).__name__} takes no `{STEPS}`, so that there are no short runs: use "
                "shortcut or best-of."
            )

    def call(self, sampler, **settings):
        if self.idle:
            return sampler.sample(by=self, **settings)
        of = self.of or ("maps" if hasattr(sampler.pipe, MAPS) else "prompt")
        given = settings.pop("generator", None) or one_seed()
        draft = {**settings, STEPS: self.draft_steps}
        with sampler.conditioning(of) as moved:
            generator = self._best(sampler, given, settings)
            moved.forget()  # the size is that of the candidate that was chosen
            sampler.initial_noise(generator=restarted(generator), **draft)

            def evaluate(shift, gradient):
                moved.shift = shift.detach().requires_grad_()
                again = restarted(generator)
                return sampler.through(moved, gradient=gradient, generator=again, **draft)

            def update(shift, direction):
                return shift - along(self.rate * moved.size_B, shift) * direction

            moved.shift = optimised(
                moved.shift.detach(),
                evaluate,
                lambda _, gradient: unit(gradient),
                update,
                iterations=self.iterations,
                momentum=self.momentum,
                tell=sampler.candidate,
            ).detach()
            return sampler.sample(**settings, generator=generator, by=None)

    def _best(self, sampler, given: Given, settings: dict[str, object]) -> Given:
        """Return the generators of the candidate of each image whose draft scores best."""
        if self.number == 1:
            return given
        if settings.get("latents") is not None:
            raise UsageError("Candidates draw their own latents: leave `latents` out, or number=1.")
        draft = {**settings, STEPS: self.candidate_steps}
        drafted = [
            sampler.ending(**draft, generator=reseeded(restarted(given), k))[1]
            for k in range(self.number)
        ]
        return chosen(given, ranked(given, torch.stack(drafted))[0])
