"""The optimisation loop: at each step, the gradient of an objective moves the parameters of a
canvas.

    canvas = Fourier(128, 128, [torch.Generator().manual_seed(0)])
    for step in Loop(canvas, Similarity(clip, "a red fox"), steps=200):
        print(step.index, step.loss_B)
    image_B3HW = step.best()

Each step decodes the canvas once. The gradient at the decoded image is the mean over `accumulate`
calls of the objective. Each call has its own views, so memory does not grow with their number. The
gradient is scaled to an rms of 1 for each image and goes back through the decoder. Adam (Kingma &
Ba 2015) then moves the parameters. Its learning rate falls along a cosine (Loshchilov & Hutter
2017).

Shapes: B images, 3 channels, H rows, W columns.
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
    """The state of the loop after one step.

    Attributes:
        index: the number of the step, from 0.
        total: the number of steps of the loop.
        loss_B: the loss before the step.
        guide_score_B: the cosine similarity of the guide after the step. It is None except at every
            `score_every`-th step and at the last.
        judge_score_B: the same for the judge.
        image: returns the current image_B3HW, in [0, 1].
        best: returns the image_B3HW with the best score of the judge so far; without a judge, the
            current one.
    """

    index: int
    total: int
    loss_B: torch.Tensor
    guide_score_B: torch.Tensor | None
    judge_score_B: torch.Tensor | None
    image: Callable[[], torch.Tensor]
    best: Callable[[], torch.Tensor]

    @property
    def samples(self) -> int:
        """Return the number of images."""
        return len(self.loss_B)

    @property
    def preview(self) -> Callable[[], torch.Tensor]:
        """Return `image`, under the name that it has in the steps of a sampler."""
        return self.image


class Loop:
    """An optimisation loop that can be stopped and resumed. Iterate it to run it.

    Call `state_dict()` between two steps, and load the result into a loop with the same arguments.
    That loop continues with the same bits.

    Args:
        canvas: the canvas to draw on. The loop changes it in place.
        objective: the objective to minimise. Its schedules see a progress from 0 to 1.
        steps: the number of steps.
        lr: the learning rate of Adam at the first step.
        decay: the factor of `lr` at the last step.
        accumulate: the number of calls of the objective in a step, each with new views.
        ema: the decay of the average of the parameters. The loop shows, scores and keeps images of
            this average; 0 is no average.
        judge: a Similarity whose score selects the best image.
        judge_from: the first step that the judge scores. Earlier images are not kept.
        guide: a Similarity whose score is reported, and selects nothing.
        score_every: the number of steps between two scores.
        span: the progress at the first and at the last step, for a loop that is part of another
            one.
        patience: stop after this number of scores in which no image improved; never if None.
        generators: one for each image, on the CPU, for its views. By default, all have the same
            seed.

    Raises:
        UsageError: an argument is out of range.
        ClipguideError: while the loop runs, the gradient of an image is not a number for the third
            time.
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
                f"{canvas.batch} images need as many generators, not {len(self.generators)}."
            )
        self.index, self._stale = 0, 0
        self._skipped = [0] * canvas.batch
        self._begin()
        self._best: torch.Tensor | None = None
        self._best_B = torch.full((canvas.batch,), -math.inf)

    def _begin(self) -> None:
        """Start Adam and the average at the present canvas."""
        self._adam = torch.optim.Adam(self.canvas.parameters(), lr=self.lr)
        self._mean = [p.detach().clone() for p in self.canvas.parameters()] if self.ema else []

    def set_image(self, image_B3HW: torch.Tensor) -> None:
        """Continue from these images in [0, 1]. The state of Adam and of the average is reset."""
        self.canvas.encode(image_B3HW)
        self._begin()

    @property
    def done(self) -> bool:
        """Return whether no step is left, or `patience` has run out."""
        return self.index >= self.steps or (
            self.patience is not None and self._stale >= self.patience
        )

    def __iter__(self) -> Iterator[Step]:
        while not self.done:
            yield self.step()

    def step(self) -> Step:
        """Take one step."""
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
                    raise ClipguideError("The loop went on: ask a step for its image before.")
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
        """Return the image_B3HW of the averaged parameters, in [0, 1]."""
        with self._averaged():
            return self.canvas.decode().clamp(0, 1)

    def best(self) -> torch.Tensor:
        """Return the image_B3HW with the best score of the judge, from any step for each image.

        Without a judge, or before its first score, it is the current image.
        """
        return self.image() if self._best is None else self._best

    def state_dict(self) -> dict:
        """Return everything that the remaining steps depend on."""
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
        """Continue from the state of another loop with the same arguments."""
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
        """Return loss_B, and the gradient at the decoded images with an rms of 1 each. A gradient
        that is not a number becomes 0, and is counted."""
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
        """Take Adam's step for the images with a gradient. Momentum would move the others too."""
        still = (gradient.flatten(1) == 0).all(1).nonzero().flatten()
        kept = [parameter[still].clone() for parameter in self._adam.param_groups[0]["params"]]
        for parameter in self._adam.param_groups[0]["params"]:
            parameter.grad[still] = 0.0
        self._adam.step()
        for parameter, before in zip(self._adam.param_groups[0]["params"], kept, strict=True):
            parameter[still] = before

    def _skip(self, i: int) -> None:
        self._skipped[i] += 1
        what = f"The gradient of image {i} is not a number at step {self.index}"
        if self._skipped[i] >= MAX_SKIPPED:
            raise ClipguideError(f"{what}, for the {MAX_SKIPPED}rd time: lower the rate lr.")
        warnings.warn(f"{what}: it does not move there.", ClipguideWarning, stacklevel=4)

    @torch.no_grad()
    def _average(self) -> None:
        """Update the average. The decay grows with the steps, so that the start has little weight.
        """
        keep = min(self.ema, (1 + self.index) / (10 + self.index))
        for mean, parameter in zip(self._mean, self.canvas.parameters(), strict=bool(self._mean)):
            mean.lerp_(parameter, 1 - keep)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Return the canvas with the averaged parameters."""
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
