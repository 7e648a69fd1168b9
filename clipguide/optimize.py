"""The loop over a canvas: an objective's gradient, step by step, makes the picture better.

    canvas = Fourier(128, 128, [torch.Generator().manual_seed(0)])
    for step in Loop(canvas, Similarity(clip, "a red fox"), steps=200):
        print(step.index, step.loss_B)
    picture = step.best()

Each step decodes the canvas once. The gradient at the decoded picture is the mean over `accumulate`
calls of the objective, each with views of its own, so that memory does not grow with their number;
it is scaled to an rms of 1 per picture, taken back through the decoder, and Adam (Kingma & Ba 2015)
moves the parameters, at a rate that falls along a cosine (Loshchilov & Hutter 2017).

Shapes: B pictures, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .canvases import Canvas
from .errors import ClipguideError, ClipguideWarning, UsageError
from .objectives import Generators, Objective, Similarity, fresh_generators, without_gradient

MAX_SKIPPED = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """After step `index` (from 0) of `total`: loss_B before it; every `score_every` steps, and at
    the last, the guide's and the judge's cosine_B of the picture after it, else None. `image()` is
    that picture, image_B3HW in [0, 1]; `best()` the one that the judge liked best so far, without a
    judge the latest."""

    index: int
    total: int
    loss_B: torch.Tensor
    guide_score_B: torch.Tensor | None
    judge_score_B: torch.Tensor | None
    image: Callable[[], torch.Tensor]
    best: Callable[[], torch.Tensor]

    @property
    def samples(self) -> int:
        """How many pictures."""
        return len(self.loss_B)

    @property
    def preview(self) -> Callable[[], torch.Tensor]:
        """`image`, by the name that a sampler's step has for it."""
        return self.image


class Loop:
    """The loop as an object, to be stopped and gone on with: iterate it; `state_dict()` between two
    steps, loaded into a loop that was made alike, goes on with the same bits.

    Args:
        canvas: what is drawn on; changed in place.
        objective: what to go down; `at` its schedules' progress, 0 first and 1 last.
        steps: how many.
        lr: Adam's rate at the first step; `decay` times that at the last.
        accumulate: calls of the objective a step, each with new views.
        ema: of the parameters, for the pictures that are shown, judged and kept; 0 is none.
        judge: scores, and by its scores the best picture is kept.
        judge_from: the first step that it scores; earlier pictures are not kept.
        guide: scores beside it, and picks nothing.
        score_every: steps from one score to the next.
        span: the progress of the first and of the last step, for a loop that is a part of another.
        patience: stop after so many scores in which no picture got better; never if None.
        generators: one a picture, on the CPU, for its views; by default all begin alike.

    Raises:
        UsageError: a setting is out of range.
        ClipguideError: while it runs, after three gradients of one picture that are no numbers.
    """

    def __init__(
        self,
        canvas: Canvas,
        objective: Objective,
        *,
        steps: int = 200,
        lr: float = 0.05,
        decay: float = 0.1,
        accumulate: int = 1,
        ema: float = 0.9,
        judge: Similarity | None = None,
        judge_from: int = 0,
        guide: Similarity | None = None,
        score_every: int = 10,
        patience: int | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        generators: Generators | None = None,
    ) -> None:
        counts = {"steps": steps, "accumulate": accumulate, "score_every": score_every}
        for name, value in {**counts, "patience": 1 if patience is None else patience}.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.")
        if not (math.isfinite(lr) and lr > 0):
            raise UsageError(f"The rate lr must be a number above 0, not {lr}.")
        if not 0 <= decay <= 1:
            raise UsageError(f"The decay of the rate is at least 0 and at most 1, not {decay}.")
        if not 0 <= ema < 1:
            raise UsageError(f"The ema is at least 0 and less than 1, not {ema}.")
        if patience is not None and judge is None:
            raise UsageError("patience waits for a judge: give one.")
        if not 0 <= span[0] <= span[1] <= 1:
            raise UsageError(f"The span lies in [0, 1], the lower first, not {span}.")
        if without := without_gradient(objective):
            raise UsageError(
                f"{without} has no gradient, and a canvas is drawn by one: take another objective, "
                "and rank what is drawn (rerank --reward)."
            )
        self.canvas, self.objective = canvas, objective
        self.judge, self.judge_from, self.guide, self.span = judge, judge_from, guide, span
        self.steps, self.lr, self.decay = steps, lr, decay
        self.accumulate, self.ema = accumulate, ema
        self.score_every, self.patience = score_every, patience
        self.generators = list(generators or fresh_generators(canvas.batch))
        if len(self.generators) != canvas.batch:
            raise UsageError(
                f"{canvas.batch} pictures need as many generators, not {len(self.generators)}."
            )
        self.index, self._stale = 0, 0
        self._skipped = [0] * canvas.batch
        self._begin()
        self._best: torch.Tensor | None = None
        self._best_B = torch.full((canvas.batch,), -math.inf)

    def _begin(self) -> None:
        """Adam and the average, from where the canvas is."""
        self._adam = torch.optim.Adam(self.canvas.parameters(), lr=self.lr)
        self._mean = [p.detach().clone() for p in self.canvas.parameters()] if self.ema else []

    def set_image(self, image_B3HW: torch.Tensor) -> None:
        """Go on from these pictures in [0, 1]: what Adam and the average remember is forgotten."""
        self.canvas.encode(image_B3HW)
        self._begin()

    @property
    def done(self) -> bool:
        """Whether there is no step left, or patience has run out."""
        return self.index >= self.steps or (
            self.patience is not None and self._stale >= self.patience
        )

    def __iter__(self) -> Iterator[Step]:
        while not self.done:
            yield self.step()

    def step(self) -> Step:
        """One step."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate()
        low, high = self.span
        progress = low + (high - low) * self.index / max(1, self.steps - 1)
        image_B3HW = self.canvas.decode()
        loss_B, gradient = self._gradient(image_B3HW.detach(), self.objective.at(progress))
        self._adam.zero_grad()
        image_B3HW.backward(gradient)
        self._move(gradient)
        self.canvas.project_()
        self._average()
        index, self.index = self.index, self.index + 1
        image_B3HW, guided, judged = None, None, None

        def image() -> torch.Tensor:
            nonlocal image_B3HW
            if image_B3HW is None:
                if self.index != index + 1:
                    raise ClipguideError("The loop went on: ask a step for its picture before.")
                image_B3HW = self.image()
            return image_B3HW

        if self.index % self.score_every == 0 or self.index == self.steps:
            if self.guide:
                guided = self.guide.score(image()).cpu()
            if self.judge and index >= self.judge_from:
                judged = self._judge(image())
        return Step(
            index=index,
            total=self.steps,
            loss_B=loss_B,
            guide_score_B=guided,
            judge_score_B=judged,
            image=image,
            best=self.best,
        )

    @torch.no_grad()
    def image(self) -> torch.Tensor:
        """image_B3HW in [0, 1] of the averaged parameters."""
        with self._averaged():
            return self.canvas.decode().clamp(0, 1)

    def best(self) -> torch.Tensor:
        """image_B3HW that the judge liked best, each picture's from its own step; without a judge,
        or before its first score, the latest."""
        return self.image() if self._best is None else self._best

    def state_dict(self) -> dict:
        """All that the steps to come depend on."""
        return {
            "index": self.index,
            "stale": self._stale,
            "skipped": list(self._skipped),
            "canvas": {k: v.clone() for k, v in self.canvas.state_dict().items()},
            "adam": copy.deepcopy(self._adam.state_dict()),
            "mean": [value.clone() for value in self._mean],
            "best": self._best,
            "best_score_B": self._best_B.clone(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        self.index, self._stale = state["index"], state["stale"]
        self._skipped = list(state["skipped"])
        self.canvas.load_state_dict(state["canvas"])
        self._adam.load_state_dict(state["adam"])
        device = next(self.canvas.parameters()).device
        self._mean = [value.to(device, copy=True) for value in state["mean"]]
        self._best = None if state["best"] is None else state["best"].to(device)
        self._best_B = state["best_score_B"].to("cpu", copy=True)
        for generator, kept in zip(self.generators, state["generators"], strict=True):
            generator.set_state(kept)

    def _rate(self) -> float:
        along = self.index / max(1, self.steps - 1)
        return self.lr * (self.decay + (1 - self.decay) * (1 + math.cos(math.pi * along)) / 2)

    def _gradient(
        self, image_B3HW: torch.Tensor, objective: Objective
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """loss_B, and the gradient at the decoded pictures with an rms of 1 each; nothing where it
        is not a number."""
        leaf = image_B3HW.requires_grad_()
        total_B = 0.0
        for _ in range(self.accumulate):
            loss_B = objective(leaf, self.generators) / self.accumulate
            loss_B.sum().backward()
            total_B = total_B + loss_B.detach()
        rms_B = leaf.grad.flatten(1).square().mean(1).sqrt()
        for i in (~(rms_B.isfinite() & total_B.isfinite())).nonzero().flatten().tolist():
            self._skip(i)
            leaf.grad[i] = rms_B[i] = 0.0
        return total_B.cpu(), leaf.grad / rms_B.clamp_min(1e-30).view(-1, 1, 1, 1)

    @torch.no_grad()
    def _move(self, gradient: torch.Tensor) -> None:
        """Adam's step, of the pictures that have a gradient: momentum would move the others too."""
        still = (gradient.flatten(1) == 0).all(1).nonzero().flatten()
        kept = [parameter[still].clone() for parameter in self._adam.param_groups[0]["params"]]
        for parameter in self._adam.param_groups[0]["params"]:
            parameter.grad[still] = 0.0
        self._adam.step()
        for parameter, before in zip(self._adam.param_groups[0]["params"], kept, strict=True):
            parameter[still] = before

    def _skip(self, i: int) -> None:
        self._skipped[i] += 1
        what = f"The gradient of picture {i} is not a number at step {self.index}"
        if self._skipped[i] >= MAX_SKIPPED:
            raise ClipguideError(f"{what}, for the {MAX_SKIPPED}rd time: lower the rate lr.")
        warnings.warn(f"{what}: it does not move there.", ClipguideWarning, stacklevel=4)

    @torch.no_grad()
    def _average(self) -> None:
        """The decay grows with the steps, so that the beginning is soon forgotten."""
        keep = min(self.ema, (1 + self.index) / (10 + self.index))
        for mean, parameter in zip(self._mean, self.canvas.parameters(), strict=bool(self._mean)):
            mean.lerp_(parameter, 1 - keep)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The canvas with the averaged parameters."""
        if not self._mean:
            yield
            return
        own = [parameter.detach().clone() for parameter in self.canvas.parameters()]
        self._set(self._mean)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.canvas.parameters(), values, strict=True):
            parameter.copy_(value)

    def _judge(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        score_B = self.judge.score(image_B3HW).cpu()
        better_B = score_B > self._best_B
        self._stale = 0 if better_B.any() else self._stale + 1
        self._best_B = torch.where(better_B, score_B, self._best_B)
        if self._best is None:
            self._best = image_B3HW
        else:
            mask = better_B.view(-1, 1, 1, 1).to(image_B3HW.device)
            self._best = torch.where(mask, image_B3HW, self._best)
        return score_B
