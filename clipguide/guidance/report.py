"""What steering saw and did.

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
    """One step of a sampler. Tensors are on the CPU; None is what was not looked at.

    `noise` is the noise level in [0, 1], `sigma` the σ of αx0 + σε; loss and gradient (its rms over
    x0) are those before the move; `angle_B` lies between the move and the direction of
    classifier-free guidance, 0 to 180 degrees, None where that cannot be known (`guidance/cfg.py`)
    and not a number for an image that was not moved; scores are cosines of the image that x0
    decodes to, and `rank_B` is −objective of it, which trust goes by where there is a judge;
    `trust_B` is what the strength of this step was multiplied by because of the judge: 1, ½ or 0.
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
    """The latest run: its trace, the warnings, how many steps were steered, how many gradients of
    one image were skipped because they were not numbers; of a method that draws candidates, the
    scores_B of each, higher is better, and the trace of those that were kept; which decoder "auto"
    chose, and why; and which way of steering."""

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
        """The guide's last score of each image."""
        return self._last("guide_score_B")

    @property
    def judge_score_B(self) -> torch.Tensor | None:
        """The judge's last score of each image."""
        return self._last("judge_score_B")

    def rows(self, i: int) -> list[dict[str, float]]:
        """The trace of image i: for each step its index, its noise level, its sigma, and of what
        was looked at all that is a number."""
        return [
            {"step": step.index, "noise": step.noise, "sigma": step.sigma, **_seen(step, i)}
            for step in self.trace
        ]

    def eased(self, i: int) -> int | None:
        """The step from which on the steering of image i was weaker, or over, because what is
        minimised got better while the judge's score fell; None if it never was."""
        doubted = (s.index for s in self.trace if s.trust_B is not None and s.trust_B[i] < 1)
        return next(doubted, None)

    def begin(self) -> None:
        """Another run of the pipeline: what is of one run is forgotten."""
        self.trace, self.steered = [], 0

    def keep(self, kept: list[Trace] | None, better_B: torch.Tensor) -> list[Trace]:
        """The trace of a run in whose stead, for some images, another is kept: of these images it
        is the latest run's, of the others `kept`'s."""
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
    """Handed to `on_step` after each step: step `index` (from 0) of `total`, how many `samples` are
    in the batch, the latest scores, and `preview()`, which decodes what the images would be now:
    image_N3HW."""

    index: int
    total: int
    samples: int
    guide_score_B: torch.Tensor | None
    judge_score_B: torch.Tensor | None
    preview: Callable[[], torch.Tensor]
