"""The settings of a fine-tuning, and the progress of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError, close_matches
from .methods import check_method

LOSSES = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The settings of a fine-tuning.

    Args:
        method: what is trained: "full" for both encoders, "lora" for low-rank updates of both,
            "lit" for the text encoder, "head" for a linear map of the image embedding.
        loss: the loss on images and captions: "softmax" (as CLIP) or "sigmoid" (as SigLIP). The
            caption of a class is a template with its name, as in FLYP (Goyal et al. 2023).
        batch: the number of images in a step.
        chunk: the number of images that are encoded at a time (GradCache).
        epochs: the number of passes over the training images.
        steps: the number of steps, which replaces `epochs`.
        lr: the learning rate; by default that of the method.
        weight_decay: the weight decay.
        warmup: the number of steps in which the learning rate rises.
        ema: the decay of the average of the weights; 0 is no average.
        rank: the rank of "lora".
        templates: a name, a file or a list of templates; by default those of the CLIP.
        augment: whether the training images are augmented.
        patience: training stops after this number of epochs without gain on the images set aside.
        seed: the seed of the training.
        bf16: whether to use autocast to bfloat16.
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
            raise UsageError("A contrastive batch holds two images at least.")
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
    """One step: its number and the number of steps, the epochs so far, and the loss. After an
    epoch, `measured` has the results of the averaged weights on the images set aside. `waited` is
    the share of the time that went into reading images."""

    step: int
    steps: int
    epoch: float
    loss: float
    scale: float
    waited: float
    measured: float | None = None
