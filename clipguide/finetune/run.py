"""`Finetune`: train a CLIP on your own images, step by step.

Shapes: B images, T different texts, D the width of the embedding.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..clip import Parts, folding
from ..engine import processes
from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..zero_shot import default_templates, templates
from . import methods
from .batches import Batches
from .checkpoint import Checkpoints
from .config import FinetuneConfig, Progress
from .contrastive import Contrastive
from .data import Dataset
from .exam import Exam, Result
from .fit import Fit, FitConfig, NotFinite
from .head import choose_head
from .wise_ft import State

RATES = {"lora": 5e-4, "lit": 1e-4, "full": 5e-5}
SECONDS = 60.0  # time between checkpoints


@dataclass
class Best:
    """The weights with the best result on the images set aside, and the history: (step, figure)
    after each epoch, and in `since` the number of epochs without a gain."""

    state: State | None = None
    worth: tuple[float, float] = (-math.inf, -math.inf)
    since: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    def look(self, model: nn.Module, step: int, result: Result) -> None:
        """Keep the model's weights if they are better than the best so far."""
        self.history.append((step, result.main))
        self.since += 1
        if result.worth > self.worth:
            self.state, self.worth, self.since = copy_state(model), result.worth, 0


class Finetune:
    """Train `parts.model` in place on `train`, and watch the images set `aside`.

    `folder` gets a checkpoint every minute and every epoch. The same run resumes from it, on a CPU
    with identical results. Iterate `run`: at the end, the model has the best weights, and `before`
    the original ones.

    Raises:
        UsageError: the settings do not fit the model.
    """

    def __init__(
        self,
        parts: Parts,
        train: Dataset,
        aside: Dataset,
        config: FinetuneConfig,
        *,
        folder: Path | None = None,
    ) -> None:
        self.parts, self.train, self.config = parts, train, config
        self.templates = templates(config.templates or default_templates(parts.name))
        if config.method == "head":
            methods.last_layer(parts)
        if config.loss == "sigmoid" and getattr(parts.model, "logit_bias", None) is None:
            raise UsageError(
                f"The CLIP {parts.name} has no bias of its logits, which the sigmoid loss needs: "
                "take softmax."
            )
        parts.model.eval()  # batch norms keep their statistics
        self.before: State = copy_state(parts.model)
        self.exam = Exam(parts, aside, templates=self.templates)
        self.state = processes()
        share = self.state.num_processes if self.state else 1
        if config.batch % share:
            raise UsageError(f"A batch of {config.batch} does not divide by {share} processes.")
        self.each = config.batch // share
        self.chunk = max(d for d in range(1, config.chunk + 1) if self.each % d == 0)
        self.epoch = max(1, math.ceil(len(train) / config.batch))
        self.steps = config.steps or max(1, round(config.epochs * self.epoch))
        self.checkpoints = Checkpoints(folder, self._about()) if folder else None
        self.best = Best()
        self.adapter: methods.Adapter | None = None  # adapter of lora, after the run

    def _about(self) -> dict[str, str]:
        """Return what distinguishes this run from others."""
        mine = {f.name: str(getattr(self.config, f.name)) for f in fields(self.config)}
        return {**mine, "model": self.parts.fingerprint[:12], "data": self.train.digest()[:12]}

    def run(self) -> Iterator[Progress]:
        """Train, from the checkpoint if there is one.

        If the loss is not a number, the run returns to the last good checkpoint, and continues at
        half the learning rate. The second time, or without a `folder`, it raises ClipguideError.
        """
        if self.config.method == "head":
            yield self._head()
            return
        model = methods.prepare(
            self.parts, self.config.method, rank=self.config.rank, seed=self.config.seed
        )
        self._skip_norms()
        loss = Contrastive(self.parts, self.config, chunk=self.chunk, state=self.state)
        fit = Fit(model, loss, self._rates(), share=loss.add_up if self.state else None)
        if not self._load(fit):
            self._save(fit)
        while True:
            try:
                yield from self._steps(fit)
                break
            except NotFinite as error:
                self._slow_down(fit, error)
        self._wait()  # no process leaves while another still receives
        folding.unskip(model.visual)
        model.load_state_dict(self.best.state)
        if self.config.method == "lora":
            self.adapter = methods.adapter_of(model)
            methods.merge_lora(model)
        model.requires_grad_(False)

    def _skip_norms(self) -> None:
        """Fold the batch norms into the convolutions, if this changes nothing."""
        random = torch.Generator().manual_seed(0)
        side = self.parts.image_size
        image_13HW = torch.rand(1, 3, side, side, generator=random)
        image_13HW = image_13HW.to(next(self.parts.model.parameters()).device)
        folding.skip(self.parts.model.visual, lambda: self.parts.model.encode_image(image_13HW))

    def _rates(self) -> FitConfig:
        config = self.config
        return FitConfig(
            steps=self.steps,
            lr=config.lr or RATES[config.method],
            warmup=min(100, self.steps // 10) if config.warmup is None else config.warmup,
            weight_decay=config.weight_decay,
            ema=config.ema,
        )

    def _steps(self, fit: Fit) -> Iterator[Progress]:
        """Yield one step after the other, until all are done or nothing improves."""
        averaged = replace(self.parts, model=fit.average.model)
        batches = Batches(
            self.train,
            self.parts,
            batch=self.chunk,
            seed=self.config.seed,
            augment=self.config.augment,
        )
        began = saved = time.monotonic()
        if self.best.since >= self.config.patience:  # the run had ended
            return
        for step in fit.run(self._big(batches, fit.index)):
            measured = None
            if step.index % self.epoch == 0 or step.index == self.steps:
                result = self.exam(averaged)
                self.best.look(fit.average.model, step.index, result)
                self._agree()
                measured = result.main
            now = time.monotonic()
            if measured is not None or now - saved > SECONDS:
                self._save(fit)
                saved = now
            waited = batches.waited / max(now - began, 1e-9)
            epoch, scale = step.index / self.epoch, step.parts["scale"]
            yield Progress(step.index, self.steps, epoch, step.loss, scale, waited, measured)
            if self.best.since >= self.config.patience:
                return

    def _big(self, batches: Batches, first: int) -> Iterator[dict]:
        """Yield this process's chunks of each step. A single chunk is prepared while the model
        runs. Several chunks are prepared again for each pass, so that they need no memory."""
        count = self.each // self.chunk
        if count == 1 and not self.state:
            for step, chunk in enumerate(batches.run(first), first):
                yield {"chunks": [chunk], "captions": self._texts(chunk["caption"], step, 0)}
        rank, share = (self.state.process_index, self.state.num_processes) if self.state else (0, 1)
        for step in range(first, self.steps):
            start = (step * share + rank) * count
            captions = [c for k in range(count) for c in batches.captions(start + k)]
            texts = self._texts(captions, step, rank * self.each)
            yield {"chunks": _Chunks(batches, start, count), "captions": texts}

    def _texts(self, captions: list[str], step: int, first: int) -> list[str]:
        """Return captions as they are, and names of classes in a template that is drawn for each
        place of the batch."""
        if not self.train.classes:
            return captions
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        drawn = torch.randint(len(self.templates), (self.config.batch,), generator=generator)
        mine = drawn[first : first + len(captions)].tolist()
        return [self.templates[k].replace("{}", name) for k, name in zip(mine, captions)]

    def _head(self) -> Progress:
        """Fit the linear map, on vectors that are computed once."""
        clip, parts = self.parts.live(), self.parts
        every = {"most": len(self.train), "once": True}
        seen = Exam(parts, self.train, templates=self.templates, **every)
        sides = []
        for exam in (seen, self.exam):
            sides.append((exam.vectors(clip), exam.text_vectors(clip), exam.target_B))
        head = choose_head(*sides, scale=clip.logit_scale)
        parts.model.requires_grad_(False)
        methods.merge_head(parts, head.map_DD)
        result = self.exam(parts)
        self.best.look(parts.model, 1, result)
        loss = result.figures["cross-entropy"]
        return Progress(1, 1, 1.0, loss, clip.logit_scale, 0.0, result.main)

    def _slow_down(self, fit: Fit, error: NotFinite) -> None:
        """Return to a good state, and continue at half the learning rate; only once."""
        slow_down(fit, error, self.checkpoints)
        self._load(fit, before=True)
        fit.slower = 0.5
        self._save(fit)

    def _agree(self) -> None:
        """Make all processes stop at the same step, even if their last bits differ."""
        if self.state:
            from accelerate.utils import broadcast_object_list

            (self.best.since,) = broadcast_object_list([self.best.since])

    def _wait(self) -> None:
        if self.state:
            self.state.wait_for_everyone()

    def _save(self, fit: Fit) -> None:
        if self.checkpoints and (not self.state or self.state.is_main_process):
            self.checkpoints.save({"fit": fit.state_dict(), "best": vars(self.best)})

    def _load(self, fit: Fit, *, before: bool = False) -> bool:
        kept = self.checkpoints.load(before=before) if self.checkpoints else None
        if kept is not None:
            fit.load_state_dict(kept["fit"])
            self.best = Best(**kept["best"])
        self._wait()  # no process writes before all have read
        return kept is not None


def slow_down(fit: Fit, error: NotFinite, checkpoints: Checkpoints | None) -> None:
    """Warn that the run returns to a checkpoint and continues at half the rate. Raise
    ClipguideError the second time, or without checkpoints."""
    if checkpoints is None:
        raise ClipguideError(f"{error} Train at less than a rate of {fit.config.lr:g}.") from None
    if fit.slower < 1:
        raise ClipguideError(
            f"{error} That was at half the rate already: begin anew at less than --lr "
            f"{fit.config.lr / 2:g}, with --force. The last good state is in {checkpoints.before}."
        ) from None
    warnings.warn(
        f"{error} clipguide goes back to the last good checkpoint, and on at half the rate.",
        ClipguideWarning,
        stacklevel=4,
    )


class _Chunks:
    """The batches `start` to `start + count`, prepared again for each pass."""

    def __init__(self, batches: Batches, start: int, count: int) -> None:
        self.batches, self.start, self.count = batches, start, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict]:
        return self.batches.run(self.start, self.start + self.count)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's weights on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
