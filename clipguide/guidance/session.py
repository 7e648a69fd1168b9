"""The runs of a pipeline while its context is open, and what happens at each evaluation.

A run begins at the first step after the pipeline set its timesteps. It ends with its last step, the
end of the call, or the beginning of the next run. Each step computes x0 from (model_output,
timestep, sample), calls the method, converts the result to a model_output, and calls the original
step. The model_output is that after classifier-free guidance.

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
from . import noise_levels, schedulers
from .cfg_window import CfgWindow
from .conditioning import Conditioning
from .contract import Method
from .decoders import Decoder
from .guidance_direction import GuidanceHook
from .observers import Observer, Seen, measured, observers
from .pipe_parts import denoiser
from .plan import Begun, Mode, Plan, Previewed
from .precision import without_autocast
from .report import Report
from .run import At, Outcome, Run
from .stepper import Stepper
from .tape import Tape


class Session:
    """The function that replaces the step of the scheduler.

    Args:
        pipe: the pipeline.
        plan: the checked arguments of `steer`.
        decoder: decodes x0.
        direction: the hook for the direction of classifier-free guidance.
    """

    def __init__(
        self, pipe: object, plan: Plan, decoder: Decoder, direction: GuidanceHook
    ) -> None:
        self.pipe, self.plan, self.decoder, self._direction = pipe, plan, decoder, direction
        self.mode = Mode(plan.method)
        self.report = self.new_report()
        self.tape: Tape | None = None
        self.run: Run | None = None
        self._cfg_window = CfgWindow(pipe, plan.cfg_window, direction, self._warn_once)
        self._stepper: Stepper | None = None
        self.first_sample: torch.Tensor | None = None
        self.conditioning: Conditioning | None = None  # that a method moves
        self.asked = self.acted = False  # whether a run was to be steered, and a step of one was
        self._repeats = plan.method.repeats()
        self._observers: Sequence[Observer] = ()
        self._steps: int | None = None
        self._over = False  # whether the run had its last step, and no other is announced

    @property
    def last_x0(self) -> torch.Tensor | None:
        """Return the clean latents that the latest step of the latest run led to."""
        return None if self._stepper is None else self._stepper.last_x0

    # ---------------------------------------------------------------- the life of a run
    def expect(self, steps: int) -> None:
        """Say how many evaluations the next run takes, where its pipeline does not."""
        self._steps = steps

    def set_timesteps(self, scheduler: object) -> None:
        """End the previous run, because the pipeline has set its timesteps."""
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
        """Make a run in the place of one that is over: what a finished sample is worth, by what is
        minimised or by what selects."""
        plan = self.plan
        return Run(
            scheduler=self.pipe.scheduler,
            decode=self.decoder,
            objective=plan.selecting if selecting else plan.ranking,
            generators=seeds.one_each(plan.generators, len(sample)),
            streams=(),
            warn=self.warn,
            half=self._half,
        )

    @property
    def _half(self) -> bool:
        return getattr(denoiser(self.pipe), "dtype", None) == torch.float16

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
            half=self._half,
            total=total,
            factor_B=torch.ones(len(sample)),
            memory=mode.memory,
            repeats=repeats,
            stop=self._interrupt if hasattr(self.pipe, "_interrupt") else None,
        )
        if mode.at_first is not None:
            mode.at_first()
        self._act = None
        if mode.method is not None and not mode.method.idle:
            self.asked = True
            self._act = mode.method.start(run)
        self._index, self._covered, self._task = 0, 0, ""
        self._choosing = True
        steers = mode.method is not None
        self._stepper = Stepper(run, differentiable=mode.differentiable and steers)
        self.first_sample = sample.detach()
        self._objective = plan.followed(mode.method)
        self._observers = observers(plan, mode.method, self.tape)
        for observer in self._observers:
            observer.begin(run, self.report)
        self.run = run
        return run

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
        """Call the method for this evaluation, and then the step of the scheduler."""
        method, scheduler = self.mode.method, self.pipe.scheduler
        self._check_mode()
        if self._over:
            self._tell_beyond()
            return original(model_output, timestep, sample, *args, **kwargs)
        run = self.run or self._begin(scheduler, sample)
        if self.mode.only_begins:
            raise Begun
        at = self._evaluation(model_output, timestep, sample, kwargs.get("eta"))
        task = "" if method is None else self._next_task(method, run, at.level.noise)
        outcome, replayed = Outcome(at.model_output, sample), None
        if self.tape is not None and self.tape.replaying:
            replayed = self.tape.next()
            outcome = self._replay(replayed, at)
        elif task == "act":
            self._choose(at)
            outcome = self._act(at)
        elif task == "hold":
            outcome = method.hold(run, at)
        if outcome.origin_B is not None:
            self._change_places(outcome.origin_B)
        after = None
        if method is not None:
            given = replace(at, model_output=outcome.model_output, sample=outcome.sample)
            after = method.after(run, given)
        direction = self._direction.direction(at.level, sample)
        trace = replayed.trace if replayed else measured(at, outcome, direction)
        seen = Seen(
            run, at, outcome, self._image(at, outcome, replayed), bool(task), bool(replayed), trace
        )
        if self.tape is not None:
            self.tape.decoder = self.decoder.name
        for observer in self._observers:
            observer.step(seen)
        self._end_preview(at, outcome)
        stepped = self._stepper(original, at, outcome, after, args, kwargs)
        self._index += 1
        if seen.last:
            self.end()
            self._over = True
        return stepped

    def _change_places(self, origin_B: torch.Tensor) -> None:
        """Let the scheduler's history, and what the pipeline keeps of each sample, go with it."""
        schedulers.permute(self.pipe.scheduler, origin_B)
        if take := getattr(self.pipe, "take", None):
            take(origin_B)

    def _evaluation(
        self, model_output: torch.Tensor, timestep: object, sample: torch.Tensor, eta: float | None
    ) -> At:
        """Return the present evaluation, and set the objective of the run to its progress."""
        scheduler, run = self.pipe.scheduler, self.run
        level = noise_levels.level(scheduler, timestep)
        self._direction.find(model_output, sample)
        if self.conditioning is not None:
            self.conditioning.stepped(first=self._index == 0)
        model_output = self._cfg_window(model_output, level.noise)
        progress = min(max(1 - level.noise, 0.0), 1.0)
        run.objective = self._objective.at(progress)
        run.weight = self._objective.weight(progress)
        x0 = schedulers.clipped(scheduler, level.x0(model_output, sample))
        return At(self._index, timestep, level, sample, model_output, x0, eta)

    def _end_preview(self, at: At, outcome: Outcome) -> None:
        """Raise Previewed if the run was to end at this step."""
        mode = self.mode
        if mode.until is not None and at.index + 1 >= mode.until * self.run.total:
            x0 = self._meant(at, outcome)
            self.decoder.choose(x0.detach())
            raise Previewed(-self.finishing(x0, selecting=True).loss(x0)[1].cpu())

    def _meant(self, at: At, outcome: Outcome) -> torch.Tensor:
        """Return the x0 of an outcome, as the scheduler computes it."""
        x0 = at.level.x0(outcome.model_output, outcome.sample)
        return schedulers.clipped(self.pipe.scheduler, x0)

    def _tell_beyond(self) -> None:
        """Warn about DemoFusion, which continues with tiles of a larger image that are no images by
        themselves."""
        if self.mode.method is not None:
            self._warn_once(
                f"{type(self.pipe).__name__} takes steps after the last that it announced, as on "
                "tiles of a larger image: these are not steered."
            )

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

    def _next_task(self, method: Method, run: Run, noise: float) -> str:
        """Return what the method does at this evaluation: "act", "hold" or nothing (""). A
        corrector follows its predictor."""
        begins = schedulers.begins_step(run.scheduler) or self._index == 0
        idle = method.idle or isinstance(run.objective, Nothing)
        if method.fades and not bool(run.factor_B.any()):
            idle = True
        if begins:
            self._task = ""
            if not idle and method.covers(noise):
                between = self._covered % method.every
                self._task = "act" if not between else "hold" if method.holds else ""
                self._covered += 1
        self.acted = self.acted or self._task == "act"
        return "" if idle else self._task

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
        self.run.kept = {name: value.to(device) for name, value in kept.kept.items()}
        sample = at.sample if kept.sample is None else kept.sample.to(device)
        return Outcome(kept.model_output.to(device), sample, finite_B=kept.finite_B)

    def _image(self, at: At, outcome: Outcome, replayed: object) -> Callable[[], torch.Tensor]:
        """Return the decoded x0 before the method moved it. At the last step, return the finished
        image: decoded by the VAE after the move, and clipped as the pipeline clips it."""
        last = at.index == self.run.total - 1
        still = outcome.model_output is at.model_output and outcome.sample is at.sample
        meant = replayed or (last and not still)  # what the scheduler goes on from

        @functools.cache
        def image() -> torch.Tensor:
            self.decoder.choose(at.x0.detach())
            cheap = last and self.decoder.kind != "vae"
            image_N3HW = outcome.image_N3HW
            if image_N3HW is None or cheap or meant:
                x0 = self._meant(at, outcome) if meant else at.x0
                decode = self.decoder.exact if last else self.decoder
                with torch.no_grad(), without_autocast(x0.device):
                    image_N3HW = decode(x0.detach())
            return image_N3HW.clamp(0, 1) if last else image_N3HW

        return image

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
