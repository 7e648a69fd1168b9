"""Keep the decoded x0 of each step as images."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from ..guidance import Step
from ..images import to_pil


class Film:
    """An `on_step` that keeps the frames of a batch. If a method runs the pipeline several times,
    it keeps those of the latest run. It also calls `on_step`."""

    def __init__(self, on_step: Callable[[Step], None] | None) -> None:
        self._on_step = on_step
        self._frames: list[list[Image.Image]] = []

    def __call__(self, step: Step) -> None:
        if step.index == 0:
            self._frames = []
        self._frames.append(to_pil(step.preview()))
        if self._on_step:
            self._on_step(step)

    def of(self, i: int, finished: Image.Image) -> tuple[Image.Image, ...]:
        """Return a frame for each step of sample i. The last one is the finished image."""
        return (*(pictures[i] for pictures in self._frames[:-1]), finished)
