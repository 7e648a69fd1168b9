"""Rollover budget forcing: repeat a step until a proposal is better, and pass on unused proposals.

Source: Kim et al. 2025, "Inference-time scaling for flow models via stochastic generation and
rollover budget forcing" (RBF, arXiv 2503.19385, section 6). Each step of the sampler becomes
stochastic, as for `particles` (for a flow model, its SDE form). A step has `quota` proposals. The
first proposal whose reward r = −loss(decode(x0)) is above the best so far is accepted, and the next
step gets the unused proposals in addition to its own. If no proposal is better, the best of them is
accepted. A run therefore takes quota · steps evaluations of the denoiser. During the run, the
method writes the entries of `scheduler.timesteps` that the pipeline reads next.

A flow model is sampled through a variance-preserving interpolant (their interpolant conversion).
Its noise levels replace those of the scheduler (`guidance/interpolants.py`). interpolant="own"
keeps the levels of the scheduler.

With a `strength`, the accepted x0 is moved along the gradient of the objective, as `shortcut` does,
before the proposals of the next step are drawn. This takes one gradient for each step. The paper
reports that gradients improve the search. This way to add them is our own.

With `enough`, the search ends at a threshold: if the best reward so far of every image is at least
`enough`, each later step accepts its first proposal. The rest of the budget is not used if the
pipeline can be interrupted, as those of diffusers can. Verifier-Threshold (Sundaresha et al. 2025,
arXiv 2512.08985) has a threshold too, but there it ends one step: the next one begins only when the
reward is above the threshold.

The images of a batch share their timesteps. A step ends when every image has a better proposal, or
when the quota is used up. Each image then takes its own first better proposal, or its best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError, close_matches
from ...schedules import Schedule
from .. import interpolants, travel
from ..contract import Method
from ..descent import descend
from ..noise_levels import next_level
from ..precision import along
from ..run import At, Outcome, Run
from ..schedulers import clipped, stochastic
from ..stochastic import spread_of, stochastic_step
from .shortcut import Shortcut

INTERPOLANTS = ("vp", "own")


@dataclass(frozen=True, kw_only=True)
class Rollover(Method):
    """Repeat each step with new noise, and accept the first proposal with a higher reward.

    With strength 0, it needs no gradient, only forward passes of the denoiser, the decoder and the
    CLIP. It acts at every step, and takes no `window` and no `every`.

    Args:
        quota: the largest mean number of proposals per step, from 2.
        eta: the amount of noise that makes a step stochastic, above 0 and at most 1.
        strength: the length of a move along the gradient in each step, as in `Shortcut`. The
            proposals of the step are drawn around the moved x0.
        interpolant: the noise levels of a flow model: "vp" for those of a variance-preserving
            interpolant, "own" for those of the scheduler. Other models ignore it.
        enough: the reward at which an image is good enough. The reward is the objective with its
            sign changed, so higher is better. None means that no image is good enough.
    """

    name: ClassVar[str] = "rollover"
    windowed: ClassVar[bool] = False

    quota: int = 4
    eta: float = 1.0
    strength: float | str | Sequence[float] | Callable[[float], float] | Schedule = 0.0
    interpolant: str = "vp"
    enough: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(2, "quota")
        self.at_least(0, "eta")
        if not (0 < self.eta <= 1):
            raise UsageError(f"eta must be above 0 and at most 1, not {self.eta}.")
        object.__setattr__(self, "strength", Shortcut(strength=self.strength).strength)
        if self.interpolant not in INTERPOLANTS:
            near = close_matches(str(self.interpolant), INTERPOLANTS)
            raise UsageError(f"There is no interpolant {self.interpolant!r}.{near}")
        if self.enough is not None:
            self.at_least(-math.inf, "enough")

    @property
    def needs_gradient(self) -> bool:
        return not self._pull.idle

    @property
    def _pull(self) -> Shortcut:
        """Return what moves the mean of the proposals."""
        return Shortcut(strength=self.strength)

    def covers(self, noise: float) -> bool:
        return True

    def check(self, pipe: object) -> None:
        travel.check(pipe)
        if stochastic(pipe.scheduler):
            raise ClipguideError(
                f"{type(pipe.scheduler).__name__} draws noise of its own, and rollover adds it: "
                "use DDIM, Euler or FlowMatchEuler."
            )

    def repeats(self) -> travel.Travel:
        return Rolling(self.quota, self.interpolant)

    def start(self, run: Run) -> Callable[[At], Outcome]:
        can_stop = run.stop is not None
        state = run.memory = _State(quota=self.quota, enough=self.enough, can_stop=can_stop)

        def act(at: At) -> Outcome:
            if stochastic(run.scheduler, at.eta):
                raise UsageError(
                    f"The pipeline's eta={at.eta} draws noise, and rollover adds its own: leave "
                    "eta out."
                )
            image_N3HW, loss_B = run.loss(at.x0)
            state.see(at, -loss_B.cpu())
            if state.over(run.repeats, at.index):
                outcome = self._moved(run, at, state)
                return replace(outcome, image_N3HW=image_N3HW, loss_B=loss_B)
            return Outcome(at.model_output, at.sample, image_N3HW, loss_B)

        return act

    def _moved(self, run: Run, at: At, state: _State) -> Outcome:
        """Return the accepted proposal of the step, with its x0 moved along the gradient."""
        pull, kept = self._pull, Outcome(state.model_output, state.sample)
        if not pull.covers(at.level.noise):
            return kept
        x0 = clipped(run.scheduler, at.level.x0(kept.model_output, kept.sample)).detach()
        descent = descend(
            x0,
            [(1.0, run.gradient)],
            size=run.weight * pull.size(at.level.noise),
            factor_B=run.factor_B,
        )
        chosen = replace(at, model_output=kept.model_output, sample=kept.sample, x0=x0)
        return descent.outcome(chosen, fixed="sample")

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor]:
        state = run.memory

        def propose(previous: torch.Tensor) -> torch.Tensor:
            if state.over(run.repeats, at.index):
                here, there = at.level, next_level(run.scheduler, at.timestep)
                noise = here.epsilon(here.x0(at.model_output, at.sample), at.sample)
                state.parent = (previous, noise, there, spread_of(here, there, self.eta))
                if state.step == run.repeats.steps - 1:
                    if not run.repeats.ends(at.index):
                        run.stop()  # good enough before the budget was spent
                    return stochastic_step(*state.parent, run.noise_like(previous))
                state.advance(self.quota)
            run.repeats.go(at.index + 1, state.step)
            return stochastic_step(*state.parent, run.noise_like(previous))

        return propose


class Rolling(travel.Travel):
    """A schedule with `times` entries for each step. `go` assigns an entry to a step."""

    def __init__(self, times: int, interpolant: str) -> None:
        super().__init__(times)
        self.interpolant = interpolant

    def enlarge(self, scheduler: object) -> None:
        if self.interpolant == "vp":
            interpolants.visit(scheduler)
        super().enlarge(scheduler)

    def returns(self, index: int) -> bool:
        return False

    def go(self, index: int, step: int) -> None:
        """Assign the evaluation `index` to the step `step`."""
        if index < self.total:
            self.read[index] = self.once[step]
            self.rewind(step)

    def ends(self, index: int) -> bool:
        """Return whether the evaluation `index` is the last one."""
        return index == self.total - 1


@dataclass
class _State:
    """The state of a run: the present step, its proposals so far, and the best of each image."""

    quota: int
    enough: float | None = None
    can_stop: bool = False
    step: int = 0
    tries: int = 0
    parent: tuple = ()
    sample: torch.Tensor | None = None
    model_output: torch.Tensor | None = None
    reward_B: torch.Tensor | None = None  # of the best proposals of this step
    best_B: torch.Tensor | None = None  # of all steps before
    taken_B: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.bool))

    def see(self, at: At, reward_B: torch.Tensor) -> None:
        """Keep the best proposal of each image."""
        self.tries += 1
        if self.tries == 1:
            self.sample, self.model_output, self.reward_B = at.sample, at.model_output, reward_B
            self.taken_B = torch.zeros(len(reward_B), dtype=torch.bool)
        else:
            better_B = (reward_B > self.reward_B) & ~self.taken_B
            mask = along(better_B, at.sample)
            self.sample = torch.where(mask, at.sample, self.sample)
            mask = along(better_B, at.model_output)
            self.model_output = torch.where(mask, at.model_output, self.model_output)
            self.reward_B = torch.where(better_B, reward_B, self.reward_B)
        if self.best_B is None:  # at the first step, the initial noise is accepted
            self.taken_B[:] = True
        else:
            self.taken_B |= self.reward_B > self.best_B

    def over(self, rolling: Rolling, index: int) -> bool:
        """Return whether this evaluation was the last of its step. The last step uses all remaining
        evaluations."""
        if self.step == rolling.steps - 1:
            return rolling.ends(index) or (self.satisfied and self.can_stop)
        if self.satisfied:
            return True
        return bool(self.taken_B.all()) or self.tries >= self.quota

    @property
    def satisfied(self) -> bool:
        """Return whether the best reward so far of every image is at least `enough`."""
        if self.enough is None:
            return False
        best_B = self.reward_B
        if self.best_B is not None:
            best_B = torch.maximum(best_B, self.best_B)
        return bool((best_B >= self.enough).all())

    def advance(self, quota: int) -> None:
        """Begin the next step. It gets the unused proposals of this one."""
        self.quota = quota + self.quota - self.tries
        self.step, self.tries = self.step + 1, 0
        if self.best_B is not None:
            self.reward_B = torch.maximum(self.best_B, self.reward_B)
        self.best_B = self.reward_B
