"""The loop that trains the generator's networks: it resumes, averages the weights and keeps time.

The learning rate rises over the first 200 steps, stays, and falls linearly to a hundredth over the
last share `fall` of the minutes ("warm-up, stable, decay", Hu et al. 2024). The state before the
fall is saved next to the checkpoint. A later call with more minutes continues from that state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clipguide.finetune import Ema
from training import common


class Loop:
    """Train `model` for a total of `minutes` of processor time (on a GPU: of the clock).

    `for done in loop: …; loop.step(loss, **parts)`; `done` runs from 0 to 1. Files in `folder`:
    checkpoint.pt (model, average, optimizer, step, minutes), stable.pt (the same before the rate
    falls), log.csv.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        *,
        minutes: float,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        ema: float = 0.998,
        fall: float = 0.3,
        save_every: float = 2.0,
        scale: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        self.folder, self.model, self.total, self.lr, self.fall = folder, model, minutes, lr, fall
        self.device = next(model.parameters()).device
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.trained = [p for _, p in named]
        groups = [
            {"params": [p for n, p in named if scale(n) == factor], "factor": factor}
            for factor in sorted({scale(n) for n, _ in named})
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay)
        self.average = Ema(model, ema)
        self.index, self.minutes, self.save_every = 0, 0.0, save_every
        self.log, self.recent = common.Log(folder / "log.csv"), []
        self._load()

    @property
    def clock(self) -> float:
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    def __iter__(self) -> Iterator[float]:
        last, saved = self.clock, self.minutes
        while self.minutes < self.total:
            done = self.minutes / self.total
            left = min(1.0, (1 - done) / self.fall) if self.fall else 1.0
            for group in self.optimizer.param_groups:
                rate = self.lr * min(1.0, (self.index + 1) / 200) * max(0.01, left)
                group["lr"] = rate * group["factor"]
            yield done
            now = self.clock
            self.minutes, last = self.minutes + (now - last) / 60, now
            falls = self.minutes >= self.total * (1 - self.fall) > done * self.total
            if falls:
                self.save("stable.pt")
            if self.minutes - saved >= self.save_every:
                saved = self.minutes
                self.save()
                self.tell()
        self.save()
        self.tell()

    def step(self, loss: Tensor, **parts: Tensor) -> None:
        """Take one step of the optimiser. A gradient that is not finite is skipped."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.average.update(self.model)
        self.index += 1
        self.recent.append({"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}})

    def tell(self) -> None:
        """Write a row of the log: the means since the last row."""
        if self.recent:
            names = {name for row in self.recent for name in row}
            means = {
                name: float(np.mean([float(r[name]) for r in self.recent if name in r]))
                for name in sorted(names)
            }
            self.log(step=self.index, minutes=round(self.minutes, 2), **means)
            self.recent = []

    def save(self, name: str = "checkpoint.pt") -> None:
        """Save the state. A stop at any moment leaves a complete file."""
        part = self.folder / f"{name}.part"
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict(),
                "average_steps": self.average.steps,
                "optimizer": self.optimizer.state_dict(),
                "index": self.index,
                "minutes": self.minutes,
                "falling": self.minutes > self.total * (1 - self.fall),
            },
            part,
        )
        part.rename(self.folder / name)

    def _load(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        stable = self.folder / "stable.pt"
        if state["falling"] and state["minutes"] < self.total * (1 - self.fall):
            state = torch.load(stable, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.steps = state["average_steps"]
        if state["optimizer"]:
            factors = [group["factor"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, factor in zip(self.optimizer.param_groups, factors):
                group["factor"] = factor
        self.index, self.minutes = state["index"], state["minutes"]


def averaged(folder: Path) -> dict[str, Tensor]:
    """Return the averaged weights of the latest checkpoint in a folder."""
    return torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["average"]
