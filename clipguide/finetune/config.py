"""How a CLIP is fine-tuned, and what each step tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError, close_matches
from .methods import check_method

LOSSES = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a CLIP is fine-tuned.

    method: head, lora (of `rank`), lit or full: see `methods`. loss: softmax (CLIP's) or sigmoid
    (SigLIP's), of pictures and captions: of classes those are a template filled with the name, one
    of `templates` (a name, a file or a list; the CLIP's own by default) a picture, as in FLYP
    (Goyal et al. 2023). `batch` pictures a step, encoded `chunk` at a time (GradCache). `epochs`
    are of as many pictures as there are to train on; `steps` takes their place. `lr` by default
    goes by the method. Weights are averaged with `ema`. After each epoch the pictures set aside are
    looked at, and after `patience` epochs without gain the run ends. bf16: autocast to bfloat16.
    """

    method: str = "full"
    loss: str = "softmax"
    batch: int = 64
    chunk: int = 64
    epochs: float = 10.0
    steps: int | None = None
    lr: float | None = None
    weight_decay: float = 0.02
    warmup: int | None = None
    ema: float = 0.99
    rank: int = 8
    templates: str | Sequence[str] | None = None
    augment: bool = True
    patience: int = 3
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.loss not in LOSSES:
            raise UsageError(f"There is no loss {self.loss!r}.{close_matches(self.loss, LOSSES)}")
        for name in ("batch", "chunk", "rank", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.batch < 2:
            raise UsageError("A contrastive batch holds two pictures at least.")
        if not (self.epochs > 0 and math.isfinite(self.epochs)) or (
            self.steps is not None and self.steps < 1
        ):
            raise UsageError("There must be at least one step.")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"lr is above 0, not {self.lr}.")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema lies in [0, 1), not {self.ema}.")


@dataclass(frozen=True)
class Progress:
    """One step: its number of how many, the epochs so far, the loss, and in `measured`, after an
    epoch, how the averaged weights do on the pictures set aside. `waited` is the share of the time
    so far that went into reading pictures."""

    step: int
    steps: int
    epoch: float
    loss: float
    scale: float
    waited: float
    measured: float | None = None
