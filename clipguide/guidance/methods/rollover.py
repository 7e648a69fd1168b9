"""Rollover budget forcing: at each step try again until it is better, and hand on what is left.

Kim et al. 2025, "Inference-time scaling for flow models via stochastic generation and rollover
budget forcing" (RBF, algorithm 1). The sampler's step is made stochastic as that of `particles`
(for a flow, its SDE form). A step may be proposed `quota` times: the first proposal whose reward
r = −loss(decode(x0)) beats the best so far is taken, and the proposals that it left unused are the
next step's; if none does, the best of them is. So every run costs quota · steps evaluations of the
denoiser, spent where they are needed. The entries of `scheduler.timesteps` that the pipeline reads
are written as the run goes.

A flow is sampled through a variance-preserving interpolant (their interpolant conversion), whose
levels it visits instead of its own (`guidance/interpolants.py`); interpolant="own" leaves them.

With a `strength` the x0 that a step was decided for is moved along the objective's gradient, as
the shortcut does, before its proposals are drawn: they are drawn around a better mean, at one
gradient a step. They report that gradients add to the search; this way of adding them is ours.

With `enough` the search ends early, at a threshold of the verifier (arXiv 2512.08985, 2025):
once the best reward so far of every image is at least that, each step takes its first proposal, and
what is left of the budget is not spent, where the pipeline can be interrupted (diffusers' own can).

The images of a batch share their timesteps: a step is over when each has found better, or the
quota is spent, and each takes its own first proposal that was better, or its best.
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
from ..contract import WINDOW, Method
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
    """Try several proposals at each step, `quota` on average.

    Without a strength it needs no gradient, only forward passes of the denoiser, the decoder and
    the CLIP.

    Args:
        quota: the mean number of proposals a step.
        eta: the amount of noise that makes a step stochastic, above 0.
        strength: the length of the shortcut's move that proposals are drawn around, as a fraction
            of rms(x0): a number or a schedule. 0 is none.
        interpolant: the noise levels of a flow: "vp", of a variance-preserving interpolant, or its
            "own". Of no meaning to other models.
        enough: the reward, −objective, at which an image is good enough; None is never.
    """

    name: ClassVar[str] = "rollover"

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
        if self.every != 1 or self.window != WINDOW:
            raise UsageError("rollover looks at every step: leave window and every out.")

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
    """A schedule with room for `times` proposals per step. `go` says to which step an entry
    belongs."""

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
        """Make the evaluation at `index` one of step `step`."""
        if index < self.total:
            self.read[index] = self.once[step]
            self.rewind(step)

    def ends(self, index: int) -> bool:
        """Return whether no evaluation is left after the one at `index`."""
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
        if self.best_B is None:  # the first noise is given
            self.taken_B[:] = True
        else:
            self.taken_B |= self.reward_B > self.best_B

    def over(self, rolling: Rolling, index: int) -> bool:
        """Return whether this evaluation was the last of its step; the last step takes what is
        left."""
        if self.step == rolling.steps - 1:
            return rolling.ends(index) or (self.satisfied and self.can_stop)
        if self.satisfied:
            return True
        return bool(self.taken_B.all()) or self.tries >= self.quota

    @property
    def satisfied(self) -> bool:
        """Return whether the best reward of each image so far is enough."""
        if self.enough is None:
            return False
        best_B = self.reward_B
        if self.best_B is not None:
            best_B = torch.maximum(best_B, self.best_B)
        return bool((best_B >= self.enough).all())

    def advance(self, quota: int) -> None:
        """Go on to the next step, with the proposals that this one left."""
        self.quota = quota + self.quota - self.tries
        self.step, self.tries = self.step + 1, 0
        if self.best_B is not None:
            self.reward_B = torch.maximum(self.best_B, self.reward_B)
        self.best_B = self.reward_B
