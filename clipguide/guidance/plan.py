"""The checked arguments of `steer`, and the present mode of a session."""

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
    """The checked arguments of `steer`.

    `ranking` is the objective that ranks finished images. `select` ranks candidates instead; None
    is the same. `sign` is −1 if the objective leads away from the prompts of the guide. `choice`
    describes the choice of "auto". `ignored` are warnings with which every report begins.
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
        """Return the objective that ranks finished candidates."""
        return self.ranking if self.select is None else finished(self.select)

    def followed(self, method: Method | None) -> Objective:
        """Return the objective that a method uses. One without a gradient only selects."""
        free = method is not None and not method.needs_gradient
        return self.select if free and self.select is not None else self.objective


@dataclass(frozen=True)
class Mode:
    """The present mode of steering: the method or none, with or without gradients through the
    denoiser, inside s(…) or not. `memory` is for the method's `start`. `only_begins` stops a run at
    its first step with Begun. `until` stops it after that share of its steps with Previewed.
    `at_first` is called when it is at its first step."""

    method: Method | None
    differentiable: bool = False
    within_call: bool = False
    memory: object = None
    only_begins: bool = False
    until: float | None = None
    at_first: Callable[[], None] | None = None


class Begun(Exception):
    """The exception that ends a run at its first step."""


class Previewed(Exception):
    """The exception that ends a run at the preview, with score_B of the decoded x0."""

    def __init__(self, score_B: torch.Tensor) -> None:
        super().__init__()
        self.score_B = score_B
