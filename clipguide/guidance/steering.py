"""The context that `steer` opens: what wraps `pipe.scheduler.step`, and what a method asks of it.

From (model_output, timestep, sample) a step computes x0, lets the method act on it, maps what came
of it back to a model_output and calls the original step. The model_output is the one after
classifier-free guidance.

Shapes: B samples, N decoded images, 3 channels of H x W pixels.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import ClipguideError, ClipguideWarning
from ..objectives import Generators, Nothing, Objective, Similarity, fresh_generators
from . import parameterisation
from .best_of import restarted
from .cfg import Overheard, angle
from .decoders import Decoder
from .families import denoiser, execution_device
from .method import Method
from .report import Report, Step, Trace
from .run import At, Gradient, Outcome, Run, streams
from .tape import Kept, Tape
from .trust import Trust

MAX_SKIPPED = 3


class Steering:
    """The context of `steer`, and what a method asks of the pipeline. `report` tells of the latest
    run inside it; `attach` and `detach` are the context's two ends, for servers."""

    def __init__(
        self,
        pipe: object,
        objective: Objective,
        *,
        method: Method,
        guide: Similarity | None,
        judge: Similarity | None,
        decoder: Decoder,
        score_every: int,
        trace: bool,
        generators: Generators | None,
        on_step: Callable[[Step], None] | None,
        tape: Path | None,
        choice: str,
        ignored: tuple[str, ...],
    ) -> None:
        self.pipe, self.objective, self.method = pipe, objective, method
        self.guide, self.judge, self.score_every = guide, judge, score_every
        self._tracing = trace
        self.generators, self.on_step, self.ignored = generators, on_step, ignored
        self._choice = choice
        self.report = self._new_report()
        self._decoder = decoder
        self._scheduler = self._travel = self._calling = self._memory = None
        self._acting: Method | None = method
        self._differentiable = False
        self._folder, self._tape, self._mute = tape, None, None

    # ------------------------------------------------------------ the context
    def __enter__(self) -> Steering:
        scheduler = self.pipe.scheduler
        if hasattr(scheduler.step, "_steering"):
            raise ClipguideError("This pipeline is steered already: leave that context first.")
        parameterisation.home(scheduler)
        self.method.check(self.pipe)
        self._travel = self.method.travelling(scheduler)
        original = scheduler.step

        @functools.wraps(original)  # pipelines look at its signature
        def step(model_output, timestep, sample, *args, **kwargs):
            return self._stepped(original, model_output, timestep, sample, *args, **kwargs)

        step._steering = self
        self._instance_step = scheduler.__dict__.get("step")
        scheduler.step = step
        self._scheduler, self._timesteps, self._covered = scheduler, None, 0
        self._asked = self._ever = False  # whether a run was to be steered, and a step of one was
        self._decoder.open()
        self._overheard = Overheard(self.pipe)
        if self._folder is not None:
            self._tape = Tape(self._folder)
            self._mute = self._tape.listen(self.pipe)
        return self

    def __exit__(self, exception_type: type | None, *_: object) -> None:
        scheduler, self._scheduler = self._scheduler, None
        self._overheard.close()
        self._rewound()
        del scheduler.step
        if self._instance_step is not None:
            scheduler.step = self._instance_step
        if self._travel:
            self._travel = self._travel.close()
        self._decoder.close()
        if exception_type is not None:
            return
        if self.pipe.scheduler is not scheduler:
            self._warn("The pipeline's scheduler was replaced, and its steps were not steered.")
        elif self._asked and not self._ever:
            window = self.method.window
            self._warn(f"No step was steered: none had a noise level in {window}.")

    def attach(self) -> Steering:
        """Enter the context."""
        return self.__enter__()

    def detach(self) -> None:
        """Leave the context."""
        self.__exit__(None)

    def draws(self, height: int, width: int) -> None:
        """Say, before the context, what size in pixels is drawn in it: of packed latents, where
        the pipeline has no `prepare_latents` that would."""
        self._decoder.hear(height, width)

    # --------------------------------------------------- the pipeline's runs
    def __call__(self, *args: object, **settings: object) -> object:
        """Run the pipeline by the method: its own arguments, what it returns."""
        if self._scheduler is None:
            raise ClipguideError("Enter the context first: with steer(…) as s: s(…).")
        bound = inspect.signature(self.pipe.__call__).bind(*args, **settings)
        self.report, self._calling = self._new_report(), True
        try:
            return self.method.call(self, **bound.arguments)
        finally:
            self._calling = False

    def sample(
        self,
        *,
        by: Method | None,
        differentiable: bool = False,
        memory: object = None,
        **settings: object,
    ) -> object:
        """One run of the pipeline, steered by a method or none, with gradients or
        without; what it returns. `memory` is handed to the method's `start`."""
        self._acting = by
        self._timesteps, self._memory = None, memory
        try:
            if not differentiable:
                return self.pipe(**settings)
            with self._gradients():
                return type(self.pipe).__call__.__wrapped__(self.pipe, **settings)
        finally:
            self._acting, self._differentiable = self.method, False

    def initial_noise(self, **settings: object) -> torch.Tensor:
        """The latents that the pipeline begins with, as its `latents` argument takes them."""
        settings = {**settings, "num_inference_steps": 1, "output_type": "latent"}
        settings["generator"] = restarted(settings.get("generator"))
        for name in ("timesteps", "sigmas"):
            settings.pop(name, None)
        self.sample(**settings, by=None)
        return self._first_sample / float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def ending(self, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Unsteered: the final latents, and score_B = −loss_B of what they decode to."""
        self.sample(**{**settings, "output_type": "latent"}, by=None)
        _, loss_B = self._run(self._last_x0).loss(self._last_x0)
        return self._last_x0, -loss_B

    def through(self, latents: torch.Tensor, **settings: object) -> Gradient:
        """The objective at the end of an unsteered run, and its gradient by the latents."""
        settings = {**settings, "latents": latents, "output_type": "latent"}
        with self._gradients():  # what is checkpointed runs again as the gradient is taken
            self.sample(**settings, by=None, differentiable=True)
            return self._run(latents).gradient(self._last_x0, of=latents)

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Score_B by the guide; by the objective, negative, where it has no prompts."""
        image_B3HW = image_B3HW.to(execution_device(self.pipe))
        if self.guide is not None:
            return self.guide.score(image_B3HW).cpu()
        with torch.no_grad():
            return -self.objective(image_B3HW, fresh_generators(len(image_B3HW))).cpu()

    @contextlib.contextmanager
    def _gradients(self) -> Iterator[None]:
        """Gradients through the denoiser, checkpointed where it can be; none for weights."""
        parts = [m for m in self.pipe.components.values() if isinstance(m, torch.nn.Module)]
        trainable = [p for part in parts for p in part.parameters() if p.requires_grad]
        model = denoiser(self.pipe)
        checkpoint = getattr(model, "_supports_gradient_checkpointing", False)
        checkpoint = checkpoint and not model.is_gradient_checkpointing
        for parameter in trainable:
            parameter.requires_grad_(False)
        if checkpoint:
            model.enable_gradient_checkpointing()
        self._differentiable = True
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            if checkpoint:
                model.disable_gradient_checkpointing()

    # ------------------------------------------------- one step of a scheduler
    def _stepped(self, original: Callable, model_output, timestep, sample, *args, **kwargs):
        """The scheduler's step from what the method makes of this evaluation."""
        if self.method.called and not self._calling:
            raise ClipguideError(
                f"{self.method.name} runs the pipeline itself: call s(…) of `with steer(…) as s`."
            )
        scheduler, method = self._scheduler, self._acting
        if scheduler.timesteps is not self._timesteps:  # set anew by each call of the pipeline
            self._begin(scheduler.timesteps, sample)
        level = parameterisation.level(scheduler, timestep)
        x0 = level.x0(model_output, sample)
        at = At(self._index, timestep, level, sample, model_output, x0)
        outcome = Outcome(model_output, sample)
        self._running.objective = self.objective.at(min(max(1 - level.noise, 0.0), 1.0))
        due = method is not None and self._is_due(method, level.noise)
        kept = self._tape.next() if self._tape and self._tape.replaying else None
        if kept:
            outcome = self._replayed(kept, outcome, due)
        elif due:
            if self._choosing:
                self._choose(x0)
            outcome = self._act(at)
            self._count(outcome)
            self._measure(outcome.image_N3HW)
        after = None
        if method is not None:
            seen = replace(at, model_output=outcome.model_output, sample=outcome.sample)
            after = method.after(self._running, seen)
        self._observe(at, outcome, kept)
        stepped = original(outcome.model_output, timestep, outcome.sample, *args, **kwargs)
        self._last_x0 = self._previous(stepped, after, at)
        self._index += 1
        return self._with_previous(stepped, self._last_x0)

    def _measure(self, image_N3HW: torch.Tensor | None) -> None:
        """Warn, once a run, of a CLIP that looks at more pixels than there are."""
        if self._measured or image_N3HW is None or self._decoder.kind == "linear":
            return
        self._measured, (height, width) = True, image_N3HW.shape[-2:]
        side = self.guide.clip.image_size if self.guide else 0
        if side > min(height, width):
            self._warn(
                f"The picture is {width}x{height} and is enlarged for {self.guide.clip.name}, "
                f"which looks at {side}x{side}: draw larger, or take a CLIP of fewer pixels."
            )

    def _replayed(self, kept: Kept, outcome: Outcome, due: bool) -> Outcome:
        """What the scheduler was given at this step before the run was stopped."""
        for generator, state in zip(self._running.generators, kept.states, strict=True):
            generator.set_state(state)
        outcome.model_output = kept.model_output.to(outcome.model_output)
        outcome.finite_B = kept.finite_B
        if due:
            self._count(outcome)
        return outcome

    def _rewound(self) -> None:
        """The run that was taped is over."""
        if self._mute:
            self._mute.close()
        self._tape = self._mute = None

    def _previous(self, stepped, after, at: At) -> torch.Tensor:
        """The scheduler's new sample, as the pipeline is to get it."""
        previous = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        previous = after(previous) if after else previous
        if self._travel and self._travel.returns(at.index):
            noise = self._running.noise_like(previous)
            previous = self._travel.back(at.index, at.timestep, at.level, previous, noise)
        if self._differentiable and self._acting is not None:  # each step's gradient is its own
            previous = previous.detach().requires_grad_(self._index < self._total - 1)
        return previous

    def _with_previous(self, stepped, previous: torch.Tensor):
        if isinstance(stepped, tuple):
            return (previous, *stepped[1:])
        stepped.prev_sample = previous
        return stepped

    def _run(self, sample: torch.Tensor) -> Run:
        batch = len(sample)
        generators = self.generators or fresh_generators(batch)
        if len(generators) != batch:
            raise ClipguideError(
                f"The pipeline samples {batch} images, and there are {len(generators)} generators."
            )
        return Run(
            scheduler=self._scheduler,
            decode=self._decoder,
            objective=self.objective,
            generators=generators,
            streams=streams(sample),
            warn=self._warn,
            memory=self._memory,
            travel=self._travel,
        )

    def _begin(self, timesteps: torch.Tensor, sample: torch.Tensor) -> None:
        if self._tape:
            if self._tape.position:
                self._rewound()
            else:
                self._tape.begin(sample, timesteps)
        self._total, self._index, self._covered = len(timesteps), 0, 0
        if self._travel:
            self._travel.settle()
        self._timesteps = self._scheduler.timesteps
        self._first_sample = sample.detach()
        self._running = self._run(sample)
        self._trust = Trust(len(sample))
        self._choosing, self._measured = True, False
        if not self._calling:
            self.report = self._new_report()
        if self._acting is not None and not self._acting.idle:
            self._asked = True
            self._act = self._acting.start(self._running)

    def _is_due(self, method: Method, noise: float) -> bool:
        if method.idle or not method.covers(noise) or self.report.skipped >= MAX_SKIPPED:
            return False
        if isinstance(self._running.objective, Nothing):
            return False
        self._covered, self._ever = self._covered + 1, True
        return (self._covered - 1) % method.every == 0

    def _choose(self, x0: torch.Tensor) -> None:
        """Which decoder this run takes from here on."""
        self.report.decoder = self._decoder.choose(x0.detach())
        self._choosing = False

    def _count(self, outcome: Outcome) -> None:
        if outcome.finite_B is None:
            self.report.steered += 1
            return
        bad = (~outcome.finite_B).nonzero().flatten().tolist()
        for i in bad:
            self._warn(
                f"The gradient of image {i} is not a number at step {self._index}: it is not "
                "steered there."
            )
        self.report.skipped += len(bad)
        self.report.steered += len(bad) < len(outcome.finite_B)
        if bad and self.report.skipped >= MAX_SKIPPED:
            self._warn(f"Steering stops after {self.report.skipped} gradients that are no numbers.")

    def _observe(self, at: At, outcome: Outcome, kept: Kept | None) -> None:
        """Score, trace, trust, and tell on_step; of a step that was kept, what was seen then."""
        total = self._total

        last = at.index == total - 1

        @functools.cache
        def preview() -> torch.Tensor:
            if outcome.image_N3HW is not None and not (last and self._decoder.kind != "vae"):
                return outcome.image_N3HW
            with torch.no_grad():
                x0 = at.level.x0(outcome.model_output, at.sample) if kept else at.x0
                return (self._decoder.exact if last else self._decoder)(x0.detach())

        due = at.index % self.score_every == 0 or last
        if self._acting is None or self._acting.idle:
            due = False  # plain sampling decodes and scores nothing
        scored = due or (self._tracing and self._acting is not None)

        def score(similarity: Similarity | None) -> torch.Tensor | None:
            return similarity.score(preview()).cpu() if similarity and scored else None

        trace = kept.trace if kept else self._seen(at, outcome, score)
        self.report.trace.append(trace)
        if self._tape and not kept:
            states = [generator.get_state() for generator in self._running.generators]
            self._tape.keep(Kept(outcome.model_output, outcome.finite_B, states, trace))
        if due and trace.judge_score_B is not None:
            self._doubt(trace)
        if self.on_step:
            self.on_step(
                Step(
                    index=at.index,
                    total=total,
                    samples=len(at.sample),
                    guide_score_B=self.report.guide_score_B,
                    judge_score_B=self.report.judge_score_B,
                    preview=preview,
                )
            )

    def _seen(self, at: At, outcome: Outcome, score: Callable) -> Trace:
        return Trace(
            index=at.index,
            noise=at.level.noise,
            sigma=at.level.sigma,
            **self._facts(at, outcome),
            guide_score_B=score(self.guide),
            judge_score_B=score(self.judge),
        )

    def _facts(self, at: At, outcome: Outcome) -> dict[str, torch.Tensor]:
        """What an evaluation measured, on the CPU; what is of x0's device is brought in one go."""
        direction = self._overheard.direction(at.level, at.sample)
        found = {}
        if outcome.gradient_B is not None:
            found["gradient_B"] = outcome.gradient_B
        if outcome.delta is not None and direction is not None:
            found["angle_B"] = angle(outcome.delta, direction)
        if found:
            found = dict(zip(found, torch.stack([*found.values()]).cpu()))
        return found if outcome.loss_B is None else {**found, "loss_B": outcome.loss_B.cpu()}

    def _doubt(self, trace: Trace) -> None:
        fell_B = self._trust.see(trace.guide_score_B, trace.judge_score_B)
        self._running.factor_B = self._trust.factor_B
        for i in fell_B.nonzero().flatten().tolist():
            what = "is halved" if self._trust.factor_B[i] else "stops"
            self._warn(
                f"The guide's score of image {i} climbs while the judge's falls: its steering "
                f"{what} at step {trace.index}."
            )

    def _new_report(self) -> Report:
        warned = list(self.ignored)
        return Report(method=self.method.name, choice=self._choice, warnings=warned)

    def _warn(self, message: str) -> None:
        self.report.warnings.append(message)
        warnings.warn(message, ClipguideWarning, stacklevel=2)
