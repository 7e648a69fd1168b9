"""The report of a run: its scores, its trace and its warnings.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

SEEN = {
    "loss": "loss",
    "gradient": "gradient",
    "angle": "angle",
    "guide": "guide_score",
    "judge": "judge_score",
    "trust": "trust",
}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One step of a sampler. Tensors are on the CPU. A value that was not computed is None.

    Attributes:
        index: the number of the step, from 0.
        noise: the noise level, from 0 to 1.
        sigma: the σ of αx0 + σε.
        loss_B: the loss before the move.
        gradient_B: the rms of the gradient over x0, before the move.
        angle_B: the angle between the move and the direction of classifier-free guidance, from 0 to
            180 degrees. It is None if the direction is not known
            (`guidance/guidance_direction.py`), and NaN for an image that was not moved.
        guide_score_B: the cosine similarity by the guide of the image that x0 decodes to, before
            the move. At the last step, it is that of the finished image.
        judge_score_B: the cosine similarity by the judge of the same image.
        rank_B: the objective of the same image, with its sign changed. With a judge, `trust_B`
            depends on it.
        trust_B: the factor of the strength of this step: 1, or ½ or 0 if the judge's score fell.
    """

    index: int
    noise: float
    sigma: float
    loss_B: torch.Tensor | None = None
    gradient_B: torch.Tensor | None = None
    angle_B: torch.Tensor | None = None
    guide_score_B: torch.Tensor | None = None
    judge_score_B: torch.Tensor | None = None
    rank_B: torch.Tensor | None = None
    trust_B: torch.Tensor | None = None


@dataclass
class Report:
    """What happened in the latest run.

    Attributes:
        method: the name of the method.
        trace: a `Trace` of each step, for the images that were kept.
        warnings: the warnings of the run.
        steered: the number of steered steps.
        skipped: the number of gradients that were skipped because they were NaN or infinite,
            counted for each image.
        decoder: the decoder that was used, and why.
        choice: the method that "auto" chose.
        candidates: the score_B of each sample, for a method that draws several. Higher is better.
    """

    method: str = "shortcut"
    trace: list[Trace] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steered: int = 0
    skipped: int = 0
    decoder: str = ""
    choice: str = ""
    candidates: list[torch.Tensor] = field(default_factory=list)

    @property
    def guide_score_B(self) -> torch.Tensor | None:
        """Return the last score of the guide for each image."""
        return self._last("guide_score_B")

    @property
    def judge_score_B(self) -> torch.Tensor | None:
        """Return the last score of the judge for each image."""
        return self._last("judge_score_B")

    def rows(self, i: int) -> list[dict[str, float]]:
        """Return the trace of image i: for each step its index, noise level, sigma and scores.

        Values that are not finite are left out.
        """
        return [
            {"step": step.index, "noise": step.noise, "sigma": step.sigma, **_seen(step, i)}
            for step in self.trace
        ]

    def eased(self, i: int) -> int | None:
        """Return the first step at which image i was steered less, or not at all, because of the
        judge: the objective improved, but the judge's score fell. None if this never happened."""
        doubted = (s.index for s in self.trace if s.trust_B is not None and s.trust_B[i] < 1)
        return next(doubted, None)

    def begin(self) -> None:
        """Begin a new run of the pipeline: clear the trace and the number of steered steps."""
        self.trace, self.steered = [], 0

    def keep(self, kept: list[Trace] | None, better_B: torch.Tensor) -> list[Trace]:
        """Merge the traces of two runs of the same images, and return the result.

        Where `better_B` is True, the image keeps its trace of the latest run, otherwise that in
        `kept`.
        """
        if kept is None or len(kept) != len(self.trace):
            return list(self.trace)
        self.trace = [_merged(old, new, better_B) for old, new in zip(kept, self.trace)]
        return list(self.trace)

    def _last(self, name: str) -> torch.Tensor | None:
        seen = (getattr(step, name) for step in reversed(self.trace))
        return next((value for value in seen if value is not None), None)


def _merged(old: Trace, new: Trace, better_B: torch.Tensor) -> Trace:
    values = {}
    for name in (one.name for one in dataclasses.fields(Trace) if one.name.endswith("_B")):
        before, after = getattr(old, name), getattr(new, name)
        if before is not None and after is not None:
            values[name] = torch.where(better_B.cpu(), after, before)
        else:
            values[name] = after if bool(better_B.all()) else before
    return dataclasses.replace(new, **values)


def _seen(step: Trace, i: int) -> dict[str, float]:
    values = {name: getattr(step, f"{field}_B") for name, field in SEEN.items()}
    seen = {name: float(value_B[i]) for name, value_B in values.items() if value_B is not None}
    return {name: value for name, value in seen.items() if math.isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` receives after each step.

    Attributes:
        index: the number of the step, from 0.
        total: the number of steps.
        samples: the number of images in the batch.
        guide_score_B: the latest scores of the guide.
        judge_score_B: the latest scores of the judge.
        preview: a function that decodes the current x0 and returns image_N3HW.
    """

    index: int
    total: int
    samples: int
    guide_score_B: torch.Tensor | None
    judge_score_B: torch.Tensor | None
    preview: Callable[[], torch.Tensor]
