"""The loop that trains a CLIP.

The loop is a generator of steps, so progress, checkpoints and early stop are its consumers'.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, dict], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train. The rate falls as a cosine over `minutes` of processor time, after `warmup`
    steps; `ema` is the decay a step of the averaged weights; gradients are clipped at `clip_norm`.
    """

    minutes: float
    lr: float = 3e-4
    warmup: int = 100
    weight_decay: float = 0.02
    ema: float = 0.998
    clip_norm: float = 1.0


@dataclass(frozen=True)
class FitStep:
    """One optimiser step: its number, the minutes so far, the loss and the loss's own parts."""

    index: int
    minutes: float
    loss: float
    parts: dict[str, float]


class Ema:
    """Exponential moving average of a model's parameters and buffers; early steps count more."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values()):
            if mine.dtype.is_floating_point:
                mine.lerp_(theirs.to(mine.dtype), 1 - decay)
            else:
                mine.copy_(theirs)


class Fit:
    """Trains `model` on `loss(model, batch) -> (loss, parts)`; `state_dict` resumes it.

    Only parameters that require gradients are trained; `scale` maps a parameter's name to a
    factor of the rate (0.1 for a backbone that already sees, say).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: FitConfig,
        scale: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        self.model, self.loss, self.config = model, loss, config
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.scales = [scale(n) for n, _ in named]
        groups = [
            {"params": [p], "weight_decay": config.weight_decay if p.ndim > 1 else 0.0}
            for _, p in named
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
        self.average = Ema(model, config.ema)
        self.index, self.minutes = 0, 0.0

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "index": self.index,
            "minutes": self.minutes,
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.steps = state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.index, self.minutes = state["index"], state["minutes"]

    def rate(self) -> float:
        """The learning rate now: linear warm-up, then half a cosine over `minutes`."""
        done = min(self.minutes / self.config.minutes, 1.0)
        warm = min((self.index + 1) / self.config.warmup, 1.0)
        return self.config.lr * warm * 0.5 * (1 + math.cos(math.pi * done))

    def run(self, batches: Iterable[dict]) -> Iterator[FitStep]:
        """Trains until the minutes are used up or the batches end."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        clock = time.process_time()
        for batch in batches:
            if self.minutes >= self.config.minutes:
                return
            rate = self.rate()
            for group, scale in zip(self.optimizer.param_groups, self.scales):
                group["lr"] = rate * scale
            loss, parts = self.loss(self.model, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
            self.optimizer.step()
            self.average.update(self.model)
            now = time.process_time()
            self.minutes, clock, self.index = self.minutes + (now - clock) / 60, now, self.index + 1
            yield FitStep(self.index, self.minutes, loss.item(), parts)
