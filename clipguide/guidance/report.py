"""What steering saw and did.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One step of a sampler. Tensors are on the CPU; None is what was not looked at.

    `noise` is the noise level in [0, 1]; loss and gradient (its rms over x0) are those before the
    move; scores are cosines of the picture that x0 decodes to.
    """

    index: int
    noise: float
    loss_B: torch.Tensor | None = None
    gradient_B: torch.Tensor | None = None
    guide_score_B: torch.Tensor | None = None
    judge_score_B: torch.Tensor | None = None


@dataclass
class Report:
    """The latest run of the pipeline: its trace, the warnings, how many steps were steered, and how
    many gradients of one image were skipped because they were not numbers."""

    method: str = "shortcut"
    trace: list[Trace] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steered: int = 0
    skipped: int = 0

    @property
    def guide_score_B(self) -> torch.Tensor | None:
        """The guide's last score of each image."""
        return self._last("guide_score_B")

    @property
    def judge_score_B(self) -> torch.Tensor | None:
        """The judge's last score of each image."""
        return self._last("judge_score_B")

    def _last(self, name: str) -> torch.Tensor | None:
        seen = (getattr(step, name) for step in reversed(self.trace))
        return next((value for value in seen if value is not None), None)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Handed to `on_step` after each step: step `index` (from 0) of `total`, the latest scores, and
    `preview()`, which decodes what the pictures would be now: image_B3HW."""

    index: int
    total: int
    guide_score_B: torch.Tensor | None
    judge_score_B: torch.Tensor | None
    preview: Callable[[], torch.Tensor]
