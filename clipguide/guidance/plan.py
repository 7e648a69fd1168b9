"""What `steer` was asked for, and how a session's runs are steered for now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..objectives import Generators, Objective, Similarity, finished
from .contract import Method
from .report import Step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `steer` was asked for, all of it checked.

    `ranking` is the objective that ranks finished images, `select` what ranks candidates in its
    stead, None for the same; `sign` is −1 where the objective leads away from the guide's prompts;
    `choice` says which way of steering "auto" chose; `ignored` are warnings that every report
    begins with.
    """

    objective: Objective
    ranking: Objective
    method: Method
    guide: Similarity | None
    judge: Similarity | None
    sign: float
    score_every: int
    trace: bool
    generators: Generators | torch.Generator | None
    on_step: Callable[[Step], None] | None
    tape: Path | None
    choice: str
    ignored: tuple[str, ...]
    select: Objective | None = None
    cfg_window: tuple[float, float] | None = None

    @property
    def selecting(self) -> Objective:
        """Return what ranks finished candidates."""
        return self.ranking if self.select is None else finished(self.select)

    def followed(self, method: Method | None) -> Objective:
        """Return what a method goes by: one without a gradient only selects."""
        free = method is not None and not method.needs_gradient
        return self.select if free and self.select is not None else self.objective


@dataclass(frozen=True)
class Mode:
    """How runs are steered for now: by a method or none, with gradients through the denoiser or
    without, and whether inside of s(…). `memory` is for the method's `start`; `only_begins` stops
    a run at its first step, by Begun; `until` after that share of its steps, by Previewed."""

    method: Method | None
    differentiable: bool = False
    within_call: bool = False
    memory: object = None
    only_begins: bool = False
    until: float | None = None


class Begun(Exception):
    """A run that was only to begin has begun."""


class Previewed(Exception):
    """A run has come as far as it was to; score_B of what its x0 decodes to."""

    def __init__(self, score_B: torch.Tensor) -> None:
        super().__init__()
        self.score_B = score_B
