"""The loop that trains a CLIP.

The loop is a generator of steps. Its callers show progress, save checkpoints and stop early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..errors import ClipguideError, UsageError

Loss = Callable[[nn.Module, dict], tuple[Tensor, dict[str, float]]]


class NotFinite(ClipguideError):
    """The loss or its gradient is not a number. The parameters are still those of the step before.
    """


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how to train: `steps`, or `minutes` of processor time.

    The learning rate rises over `warmup` steps and falls as half a cosine to 0: over the steps, as
    in open_clip, or over the minutes. AdamW has `betas` and `eps`, and no decay for parameters of
    one dimension or none. `ema` is the decay per step of the averaged weights (0: no average).
    Gradients are clipped at `clip_norm` (None: no clipping).
    """

    minutes: float | None = None
    steps: int | None = None
    lr: float = 3e-4
    warmup: int = 100
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    ema: float = 0.998
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UsageError("Give the steps to train for, or the minutes.")


@dataclass(frozen=True)
class FitStep:
    """One optimiser step: its number, the minutes so far, the loss and its parts."""

    index: int
    minutes: float
    loss: float
    parts: dict[str, float]


class Ema:
    """The exponential moving average of a model's parameters and buffers, by torch's
    `AveragedModel`. Early steps have more weight. With a decay of 0 it is the model itself."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self._model = decay, model
        if decay:
            averaged = AveragedModel(model, avg_fn=self._mixed, use_buffers=True)
            self._averaged = averaged.eval().requires_grad_(False)
            self.steps = 0

    @property
    def model(self) -> nn.Module:
        """Return the model with the averaged weights."""
        return self._averaged.module if self.decay else self._model

    @property
    def steps(self) -> int:
        """Return the number of updates."""
        return int(self._averaged.n_averaged) - 1 if self.decay else 0

    @steps.setter
    def steps(self, steps: int) -> None:
        if self.decay:
            self._averaged.n_averaged.fill_(steps + 1)  # 0 would copy, not average

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        if self.decay:
            self._averaged.update_parameters(model)

    def _mixed(self, mine: Tensor, theirs: Tensor, steps: Tensor) -> Tensor:
        if not mine.dtype.is_floating_point:
            return theirs
        decay = min(self.decay, int(steps) / (int(steps) + 10))
        theirs = theirs.to(mine.dtype)
        # A causal mask is a buffer too: an average of -inf and -inf is NaN.
        return torch.where(mine == theirs, mine, mine.lerp(theirs, 1 - decay))


class Fit:
    """Train `model` on `loss(model, batch) -> (loss, parts)`. `state_dict` resumes it.

    Only parameters that require gradients are trained. `scale` maps the name of a parameter to a
    factor of the learning rate, such as 0.1 for a pretrained backbone. A loss that computes the
    gradients itself (`cached_backward`) has no graph. `share` is called with the parameters before
    each step, so that several processes can add up their gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: FitConfig,
        scale: Callable[[str], float] = lambda name: 1.0,
        share: Callable[[list[nn.Parameter]], None] | None = None,
    ) -> None:
        self.model, self.loss, self.config, self.share = model, loss, config, share
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.scales = [scale(n) for n, _ in named]
        groups = [
            {"params": [p], "weight_decay": config.weight_decay if p.ndim > 1 else 0.0}
            for _, p in named
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
        self.average = Ema(model, config.ema)
        self.index, self.minutes, self.slower = 0, 0.0, 1.0

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "index": self.index,
            "minutes": self.minutes,
            "slower": self.slower,
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.steps = state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.index, self.minutes = state["index"], state["minutes"]
        self.slower = state.get("slower", 1.0)

    def rate(self) -> float:
        """Return the present learning rate, times `slower`, which the caller of the loop may lower.
        """
        config, warm = self.config, min((self.index + 1) / max(self.config.warmup, 1), 1.0)
        if config.steps is None:
            done = min(self.minutes / config.minutes, 1.0)
        else:
            done = max(self.index - config.warmup, 0) / max(config.steps - config.warmup, 1)
        return self.slower * config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @property
    def done(self) -> bool:
        """Return whether all steps are done, or all minutes used."""
        if self.config.steps is None:
            return self.minutes >= self.config.minutes
        return self.index >= self.config.steps

    def run(self, batches: Iterable[dict]) -> Iterator[FitStep]:
        """Train until it is done or the batches end. Raise NotFinite before a step that would break
        the parameters."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        clock = time.process_time()
        for batch in batches:
            if self.done:
                return
            rate = self.rate()
            for group, scale in zip(self.optimizer.param_groups, self.scales):
                group["lr"] = rate * scale
            self.optimizer.zero_grad(set_to_none=True)
            loss, parts = self.loss(self.model, batch)
            if loss.requires_grad:
                loss.backward()
            if self.share:
                self.share(trained)
            norm = self._clip(trained)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise NotFinite(f"The loss is not a number any more, at step {self.index + 1}.")
            self.optimizer.step()
            self.average.update(self.model)
            now = time.process_time()
            self.minutes, clock, self.index = self.minutes + (now - clock) / 60, now, self.index + 1
            yield FitStep(self.index, self.minutes, loss.item(), parts)

    def _clip(self, trained: list[nn.Parameter]) -> Tensor:
        """Clip the gradients. Return their norm before."""
        if self.config.clip_norm is not None:
            return nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
        return nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
