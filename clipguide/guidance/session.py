"""The runs of a pipeline while its context is open, and what happens at each evaluation.

A run begins at the first step after the pipeline set its timesteps, and ends with its last step,
the call's end, or the next beginning. From (model_output, timestep, sample) a step computes x0,
lets the method act on it, maps what came of it back to a model_output and calls the original step.
The model_output is the one after classifier-free guidance.

Shapes: B samples, N decoded images, 3 channels of H x W pixels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..errors import ClipguideError, ClipguideWarning
from ..objectives import Nothing
from . import generators as seeds
from . import schedulers
from .contract import At, Method, Outcome, Run, without_autocast
from .decoders import Decoder
from .guidance_direction import GuidanceHook
from .levels import widen
from .observers import (
    Doubt,
    Numbers,
    Observer,
    Scores,
    Seen,
    TapeWriter,
    Teller,
    TraceLog,
    measured,
)
from .plan import Begun, Mode, Plan, Previewed
from .report import Report
from .tape import Tape


class Session:
    """The function through which the steps of a tapped scheduler go.

    Args:
        pipe: the pipeline.
        plan: the checked arguments of `steer`.
        decoder: x0 to images.
        direction: the direction of classifier-free guidance, if it can be known.
    """

    def __init__(
        self, pipe: object, plan: Plan, decoder: Decoder, direction: GuidanceHook
    ) -> None:
        self.pipe, self.plan, self.decoder, self._direction = pipe, plan, decoder, direction
        self.mode = Mode(plan.method)
        self.report = self.new_report()
        self.tape: Tape | None = None
        self.run: Run | None = None
        self.first_sample = self.last_x0 = None
        self.asked = self.acted = False  # whether a run was to be steered, and a step of one was
        self._repeats = plan.method.repeats()
        self._observers: Sequence[Observer] = ()
        self._steps: int | None = None
        self._over = False  # whether the run had its last step, and no other is announced

    # ---------------------------------------------------------------- the life of a run
    def expect(self, steps: int) -> None:
        """Announce the number of evaluations of the next run, if the pipeline does not say it."""
        self._steps = steps

    def set_timesteps(self, scheduler: object) -> None:
        """Handle new timesteps of the pipeline: an earlier run is over."""
        self.end()
        self._direction.forget()
        if self._repeats is not None and self.mode.method is not None:
            self._repeats.enlarge(scheduler)

    def end(self) -> None:
        """End the run."""
        if self.run is not None:
            for observer in self._observers:
                observer.end()
        self.run, self._over = None, False

    def _interrupt(self) -> None:
        """Make the pipeline skip the remaining steps."""
        self.pipe._interrupt = True

    def finishing(self, sample: torch.Tensor, *, selecting: bool = False) -> Run:
        """Return a run in place of a finished one, which scores a finished sample by the objective
        or by what selects."""
        plan = self.plan
        return Run(
            scheduler=self.pipe.scheduler,
            decode=self.decoder,
            objective=plan.selecting if selecting else plan.ranking,
            generators=seeds.one_each(plan.generators, len(sample)),
            streams=(),
            warn=self.warn,
        )

    def _begin(self, scheduler: object, sample: torch.Tensor) -> Run:
        plan, mode = self.plan, self.mode
        total = self._steps or getattr(self.pipe, "_num_timesteps", None)
        total, self._steps = int(total or len(scheduler.timesteps)), None
        repeats = self._repeats if mode.method is not None else None
        if repeats is not None:
            repeats.begin(total)
        if mode.within_call:
            self.report.begin()
        else:
            self.report = self.new_report()
        run = Run(
            scheduler=scheduler,
            decode=self.decoder,
            objective=plan.objective,
            generators=seeds.one_each(plan.generators, len(sample)),
            streams=seeds.streams(sample),
            warn=self.warn,
            total=total,
            factor_B=torch.ones(len(sample)),
            memory=mode.memory,
            repeats=repeats,
            stop=self._interrupt if hasattr(self.pipe, "_interrupt") else None,
        )
        self._act = None
        if mode.method is not None and not mode.method.idle:
            self.asked = True
            self._act = mode.method.start(run)
        self._index, self._covered, self._due = 0, 0, False
        self._wide, self._choosing = False, True
        self.first_sample = sample.detach()
        self._objective = plan.followed(mode.method)
        self._observers = self._watchers()
        for observer in self._observers:
            observer.begin(run, self.report)
        self.run = run
        return run

    def _watchers(self) -> list[Observer]:
        plan = self.plan
        watchers: list[Observer] = [Numbers()]
        if self.mode.method is not None and (plan.trace or not self.mode.method.idle):
            watchers.append(
                Scores(
                    guide=plan.guide,
                    judge=plan.judge,
                    ranking=plan.ranking,
                    every=plan.score_every,
                    tracing=plan.trace,
                )
            )
        if plan.judge is not None and self.mode.method is not None and self.mode.method.fades:
            watchers.append(Doubt(plan.sign))
        watchers.append(TraceLog())
        if self.tape is not None:
            watchers.append(TapeWriter(self.tape))
        if plan.on_step is not None:
            watchers.append(Teller(plan.on_step))
        return watchers

    # ---------------------------------------------------------------- one evaluation
    def step(
        self,
        original: Callable,
        model_output: torch.Tensor,
        timestep: object,
        sample: torch.Tensor,
        *args: object,
        **kwargs: object,
    ) -> object:
        """Take the scheduler's step with the method's outcome of this evaluation."""
        method, scheduler = self.mode.method, self.pipe.scheduler
        self._check_mode()
        if self._over:
            self._tell_beyond()
            return original(model_output, timestep, sample, *args, **kwargs)
        run = self.run or self._begin(scheduler, sample)
        if self.mode.only_begins:
            raise Begun
        level = schedulers.level(scheduler, timestep)
        model_output = self._guided(model_output, sample, level.noise)
        x0 = schedulers.clipped(scheduler, level.x0(model_output, sample))
        eta = kwargs.get("eta")
        at = At(self._index, timestep, level, sample, model_output, x0, eta)
        progress = min(max(1 - level.noise, 0.0), 1.0)
        run.objective = self._objective.at(progress)
        run.weight = self._objective.weight(progress)
        due = method is not None and self._is_due(method, run, level.noise)
        outcome, replayed = Outcome(model_output, sample), None
        if self.tape is not None and self.tape.replaying:
            replayed = self.tape.next()
            outcome = self._replay(replayed, at)
        elif due:
            self._choose(at)
            outcome = self._act(at)
        after = None
        if method is not None:
            given = replace(at, model_output=outcome.model_output, sample=outcome.sample)
            after = method.after(run, given)
        trace = replayed.trace if replayed else measured(at, outcome, self._cfg(at))
        seen = Seen(
            run, at, outcome, self._image(at, outcome, replayed), due, bool(replayed), trace
        )
        if self.tape is not None:
            self.tape.decoder = self.decoder.name
        for observer in self._observers:
            observer.step(seen)
        if self.mode.until is not None and self._index + 1 >= self.mode.until * run.total:
            x0 = level.x0(outcome.model_output, outcome.sample)
            self.decoder.choose(x0.detach())
            raise Previewed(-self.finishing(x0, selecting=True).loss(x0)[1].cpu())
        stepped = self._stepped(original, at, outcome, after, args, kwargs)
        self._index += 1
        if seen.last:
            self.end()
            self._over = True
        return stepped

    def _tell_beyond(self) -> None:
        """Warn about DemoFusion, which continues with tiles of a larger image that are no images by
        themselves."""
        if self.mode.method is not None:
            self._warn_once(
                f"{type(self.pipe).__name__} takes steps after the last that it announced, as on "
                "tiles of a larger image: these are not steered."
            )

    def _guided(
        self, model_output: torch.Tensor, sample: torch.Tensor, noise: float
    ) -> torch.Tensor:
        """Return the output of the denoiser. Outside the window of classifier-free guidance, return
        that for the prompt alone."""
        window = self.plan.cfg_window
        if window is None or window[0] <= noise <= window[1]:
            return model_output
        if not getattr(self.pipe, "do_classifier_free_guidance", True):
            return model_output
        alone = self._direction.conditional(sample)
        if alone is None:
            self._warn_once(
                f"cfg_window is ignored: {type(self.pipe).__name__} does not evaluate both "
                "prompts at once."
            )
            return model_output
        return alone.to(model_output.dtype)

    def _check_mode(self) -> None:
        """Raise ClipguideError for a run outside s(…) if the method needs s(…)."""
        mode, name = self.mode, self.plan.method.name
        if mode.differentiable and not torch.is_grad_enabled():
            raise ClipguideError(
                f"{type(self.pipe).__name__} samples without gradients whatever it is told, and "
                f"{name} needs them: use shortcut."
            )
        if mode.within_call:
            return
        if self.plan.method.by_call:
            raise ClipguideError(
                f"{name} runs the pipeline itself: call s(…) of `with steer(…) as s`."
            )
        if self.plan.tape is not None:
            raise ClipguideError(
                "A tape is of one call and all its arguments: call s(…) of `with steer(…) as s`."
            )

    def _is_due(self, method: Method, run: Run, noise: float) -> bool:
        """Return whether the method acts at this evaluation. A corrector follows its predictor."""
        begins = schedulers.begins_step(run.scheduler) or self._index == 0
        idle = method.idle or isinstance(run.objective, Nothing)
        if method.fades and not bool(run.factor_B.any()):
            idle = True
        if begins:
            self._due = not idle and method.covers(noise)
            if self._due:
                self._covered += 1
                self._due = (self._covered - 1) % method.every == 0
        self.acted = self.acted or self._due
        return self._due and not idle

    def _choose(self, at: At) -> None:
        """Choose the decoder of this run."""
        if self._choosing:
            self.report.decoder = self.decoder.choose(at.x0.detach())
        self._choosing = False

    def _replay(self, kept, at: At) -> Outcome:
        """Return the scheduler's input at this step before the run was stopped."""
        for generator, state in zip(self.run.generators, kept.states, strict=True):
            generator.set_state(state)
        device = at.sample.device
        sample = at.sample if kept.sample is None else kept.sample.to(device)
        return Outcome(kept.model_output.to(device), sample, finite_B=kept.finite_B)

    def _cfg(self, at: At) -> torch.Tensor | None:
        return self._direction.direction(at.level, at.sample)

    def _image(self, at: At, outcome: Outcome, replayed: object) -> Callable[[], torch.Tensor]:
        """Return the decoded x0. The VAE itself decodes that of the last step."""
        last = at.index == self.run.total - 1
        decode = self.decoder.exact if last else self.decoder

        @functools.cache
        def image() -> torch.Tensor:
            self.decoder.choose(at.x0.detach())
            if outcome.image_N3HW is not None and not (last and self.decoder.kind != "vae"):
                return outcome.image_N3HW
            x0 = at.level.x0(outcome.model_output, outcome.sample) if replayed else at.x0
            with torch.no_grad(), without_autocast(x0.device):
                return decode(x0.detach())

        return image

    def _stepped(
        self, original: Callable, at: At, outcome: Outcome, after, args: tuple, kwargs: dict
    ) -> object:
        """Take the scheduler's step, in float32 if the method computed so, and return the result in
        the dtype of the pipeline."""
        model_output, sample = outcome.model_output, outcome.sample
        if self.mode.differentiable and self.mode.method is not None:
            model_output, sample = model_output.detach(), sample.detach()  # no graphs in a history
        dtypes = model_output.dtype, sample.dtype
        if dtypes != (at.model_output.dtype, at.sample.dtype):
            model_output, sample, self._wide = widen(model_output), widen(sample), True
        stepped = original(model_output, at.timestep, sample, *args, **kwargs)
        previous = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        previous = self._previous(previous, after, at)
        if isinstance(stepped, tuple):
            return (previous, *(self._narrow(value, at) for value in stepped[1:]))
        for name, value in list(vars(stepped).items()):
            if name != "prev_sample":
                setattr(stepped, name, self._narrow(value, at))
        stepped.prev_sample = previous
        return stepped

    def _narrow(self, value: object, at: At) -> object:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(at.sample.dtype) if self._wide and floating else value

    def _previous(self, previous: torch.Tensor, after, at: At) -> torch.Tensor:
        """Return the scheduler's new sample for the pipeline."""
        if after is not None:
            previous, self._wide = after(previous), True
        run = self.run
        if run.repeats is not None and run.repeats.returns(at.index):
            previous = run.repeats.back(at, previous, run.noise_like(previous))
            self._wide = True
        previous = self._narrow(previous, at)
        timestep = torch.as_tensor(at.timestep).flatten()[0]  # some give one a sample
        final = float(timestep) == float(run.scheduler.timesteps[-1])  # else it is noisy still
        self.last_x0 = previous if final else at.x0
        if self.mode.differentiable and self.mode.method is not None:
            previous = previous.detach().requires_grad_(at.index < run.total - 1)
        return previous

    # ---------------------------------------------------------------- the report
    def new_report(self) -> Report:
        """Return an empty report."""
        plan = self.plan
        return Report(
            method=plan.method.name, choice=plan.choice, warnings=list(plan.ignored)
        )

    def _warn_once(self, message: str) -> None:
        if message not in self.report.warnings:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Add a warning to the report, and show it."""
        self.report.warnings.append(message)
        warnings.warn(message, ClipguideWarning, stacklevel=2)
