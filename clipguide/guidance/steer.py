"""`with steer(pipe, "a red fox"): pipe("a fox")`: an unmodified diffusers pipeline, steered.

The context wraps `pipe.scheduler.step`. From (model_output, timestep, sample) it computes x0, lets
the method move it, maps the move back to a model_output and calls the original step. There is no
backward pass through the denoiser, and the model_output is the one after classifier-free guidance.

Shapes: B images, C channels and h x w of latents.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch

from ..clip import Clip, load_clip
from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..objectives import Generators, Objective, Similarity, fresh_generators
from ..prompts import Prompt
from . import parameterisation
from .families import Decoder, default_clip
from .report import Report, Step, Trace
from .shortcut import Move, Shortcut, move

STRENGTH = 0.1
WINDOW = (0.1, 1.0)
SCORE_EVERY = 5
MAX_SKIPPED = 3


def steer(
    pipe: object,
    objective: Objective | str | Prompt | Sequence[str | Prompt],
    *,
    clip: Clip | str | None = None,
    judge: Clip | str | None = None,
    strength: float = STRENGTH,
    window: tuple[float, float] = WINDOW,
    every: int = 1,
    inner: int = 1,
    score_every: int = SCORE_EVERY,
    generators: Generators | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Steering:
    """A context in which `pipe(…)` is steered towards prompts, or down an objective.

    Args:
        pipe: a diffusers pipeline whose class and scheduler are in the tables of this package.
        objective: what to go down, or prompts: one for all images, or a list as the pipeline's.
        clip: the CLIP that prompts are read by; by default the one of the pipeline's family.
        judge: a CLIP that only scores, on the prompts of the objective.
        strength: length of a step as a fraction of rms(x0); 0 changes no bit.
        window: the noise levels steered at, 1 pure noise, 0 clean.
        every: steer at every k-th step of the window.
        inner: moves a step, which share its strength.
        score_every: score at every k-th step, and the last.
        generators: one on the CPU for each image, for its views; by default all begin alike.
        on_step: called after each step.

    Raises:
        ClipguideError: the pipeline cannot be steered, or is already.
        UsageError: a setting is out of range, or there is no default CLIP.
    """
    config = Shortcut(strength=strength, window=tuple(window), every=every, inner=inner)
    if score_every < 1:
        raise UsageError(f"score_every must be at least 1, not {score_every}.")
    ignored = []
    if isinstance(objective, Objective):
        if clip is not None:
            ignored.append("clip is ignored: the objective has its own.")
    else:
        clip = default_clip(pipe) if clip is None else clip
        objective = Similarity(_loaded(clip, pipe), objective)
    leaves = objective.leaves()
    guide = next((leaf for leaf in leaves if isinstance(leaf, Similarity)), None)
    if judge is not None and guide is None:
        ignored.append("judge is ignored: the objective has no prompts to judge by.")
        judge = None
    if judge is not None:
        judge = Similarity(_loaded(judge, pipe), guide.prompts, views=None)
    for message in ignored:
        warnings.warn(message, ClipguideWarning, stacklevel=2)
    return Steering(
        pipe,
        objective,
        config=config,
        guide=guide,
        judge=judge,
        score_every=score_every,
        generators=generators,
        on_step=on_step,
        ignored=tuple(ignored),
    )


class Steering:
    """The context of `steer`. `report` tells of the latest run inside it."""

    def __init__(
        self,
        pipe: object,
        objective: Objective,
        *,
        config: Shortcut,
        guide: Similarity | None,
        judge: Similarity | None,
        score_every: int,
        generators: Generators | None,
        on_step: Callable[[Step], None] | None,
        ignored: tuple[str, ...],
    ) -> None:
        if getattr(pipe, "scheduler", None) is None:
            raise ClipguideError(f"{type(pipe).__name__} has no scheduler, so nothing to steer by.")
        parameterisation.home(pipe.scheduler)
        self.pipe, self.objective, self.config = pipe, objective, config
        self.guide, self.judge, self.score_every = guide, judge, score_every
        self.generators, self.on_step, self.ignored = generators, on_step, ignored
        self.report = Report(warnings=list(ignored))
        self._decoder = Decoder(pipe)
        self._scheduler = None

    def __enter__(self) -> Steering:
        scheduler = self.pipe.scheduler
        if hasattr(scheduler.step, "_steering"):
            raise ClipguideError("This pipeline is steered already: leave that context first.")
        parameterisation.home(scheduler)
        original = scheduler.step

        @functools.wraps(original)  # pipelines look at its signature
        def step(model_output, timestep, sample, *args, **kwargs):
            model_output = self._steered(model_output, timestep, sample)
            return original(model_output, timestep, sample, *args, **kwargs)

        step._steering = self
        self._instance_step = scheduler.__dict__.get("step")
        scheduler.step = step
        self._scheduler, self._timesteps = scheduler, None
        self._decoder.freeze()
        return self

    def __exit__(self, exception_type: type | None, *_: object) -> None:
        scheduler, self._scheduler = self._scheduler, None
        del scheduler.step
        if self._instance_step is not None:
            scheduler.step = self._instance_step
        self._decoder.thaw()
        if exception_type is not None:
            return
        if self.pipe.scheduler is not scheduler:
            self._warn("The pipeline's scheduler was replaced, and its steps were not steered.")
        elif self.config.strength and self.report.trace and not self._covered:
            self._warn(f"No step was steered: none had a noise level in {self.config.window}.")

    def _steered(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """The model_output that the scheduler gets in place of the denoiser's."""
        scheduler = self._scheduler
        if scheduler.timesteps is not self._timesteps:  # set anew by each call of the pipeline
            self._begin(scheduler.timesteps, len(sample))
        level = parameterisation.level(scheduler, timestep)
        x0_BChw = level.x0(model_output, sample)
        moved = None
        if self._is_due(level.noise):
            moved = move(
                x0_BChw,
                noise=level.noise,
                decode=self._decoder,
                objective=self.objective,
                generators=self._generators,
                config=self.config,
            )
            self._count(moved)
            model_output = level.move(model_output, moved.delta_BChw)
        self._observe(level.noise, x0_BChw, moved)
        self._index += 1
        return model_output

    def _begin(self, timesteps: torch.Tensor, batch: int) -> None:
        self._timesteps, self._index, self._covered = timesteps, 0, 0
        self._generators = self.generators or fresh_generators(batch)
        if len(self._generators) != batch:
            raise ClipguideError(
                f"The pipeline samples {batch} images, and there are {len(self._generators)} "
                "generators."
            )
        self.report = Report(warnings=list(self.ignored))

    def _is_due(self, noise: float) -> bool:
        config = self.config
        if not config.strength or not config.covers(noise) or self.report.skipped >= MAX_SKIPPED:
            return False
        self._covered += 1
        return (self._covered - 1) % config.every == 0

    def _count(self, moved: Move) -> None:
        bad = (~moved.finite_B).nonzero().flatten().tolist()
        for i in bad:
            self._warn(
                f"The gradient of image {i} is not a number at step {self._index}: it is not "
                "steered there."
            )
        self.report.skipped += len(bad)
        self.report.steered += len(bad) < len(moved.finite_B)
        if bad and self.report.skipped >= MAX_SKIPPED:
            self._warn(f"Steering stops after {self.report.skipped} gradients that are no numbers.")

    def _observe(self, noise: float, x0_BChw: torch.Tensor, moved: Move | None) -> None:
        """Score, trace and tell on_step."""
        total = len(self._timesteps)

        @functools.cache
        def preview() -> torch.Tensor:
            if moved is not None:
                return moved.image_B3HW
            with torch.no_grad():
                return self._decoder(x0_BChw)

        def score(similarity: Similarity | None) -> torch.Tensor | None:
            due = self._index % self.score_every == 0 or self._index == total - 1
            return similarity.score(preview()).cpu() if similarity and due else None

        self.report.trace.append(
            Trace(
                index=self._index,
                noise=noise,
                loss_B=None if moved is None else moved.loss_B.cpu(),
                gradient_B=None if moved is None else moved.gradient_B.cpu(),
                guide_score_B=score(self.guide),
                judge_score_B=score(self.judge),
            )
        )
        if self.on_step:
            report = self.report
            guide_B, judge_B = report.guide_score_B, report.judge_score_B
            self.on_step(
                Step(
                    index=self._index,
                    total=total,
                    guide_score_B=guide_B,
                    judge_score_B=judge_B,
                    preview=preview,
                )
            )

    def _warn(self, message: str) -> None:
        self.report.warnings.append(message)
        warnings.warn(message, ClipguideWarning, stacklevel=2)


def _loaded(clip: Clip | str, pipe: object) -> Clip:
    return load_clip(clip, device=str(pipe.device)) if isinstance(clip, str) else clip
