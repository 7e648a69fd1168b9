"""What a method works with: one run of a pipeline, one evaluation of its denoiser.

Shapes: B samples, ... the rest of a latent's shape (C, h, w; packed L, C; C, F, h, w of a video),
N = B·F decoded images (F = 1 but for videos), 3 channels of H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import ClipguideError, out_of_memory
from ..objectives import Objective
from ..objectives.features import views_at_a_time
from .clean import no_autocast
from .parameterisation import Level

if TYPE_CHECKING:
    from .travel import Travel


SPARING = 8  # views encoded at a time when memory has run out once; then half as many, and so on


@dataclass(frozen=True)
class Gradient:
    """An objective at x0: what it decodes to, loss_B, and the gradient of their sum (as x0)."""

    image_N3HW: torch.Tensor
    loss_B: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class At:
    """One evaluation: what the denoiser got and gave, the noise level, and the x0 it means."""

    index: int
    timestep: int | float | torch.Tensor
    level: Level
    sample: torch.Tensor
    model_output: torch.Tensor
    x0: torch.Tensor


@dataclass
class Outcome:
    """What the scheduler is to step from, and what was seen on the way.

    image_N3HW is the decoded x0, loss_B and gradient_B (rms over a sample) are those before any
    move, `finite_B` is False where a gradient was not a number, `delta` is the move of x0.
    """

    model_output: torch.Tensor
    sample: torch.Tensor
    image_N3HW: torch.Tensor | None = None
    loss_B: torch.Tensor | None = None
    gradient_B: torch.Tensor | None = None
    finite_B: torch.Tensor | None = None
    delta: torch.Tensor | None = None


@dataclass
class Run:
    """One run of the pipeline. `generators` feed the objective; `streams`, one a sample too, all
    else that a method draws; `warn` takes a sentence to the report and to the user; `memory` is
    what a call method has for its own `start`, or what a method keeps; `travel` repeats steps;
    `chunk` views are encoded at a time since memory ran out, all of them while it is None; `told`
    that it did."""

    scheduler: object
    decode: Callable[[torch.Tensor], torch.Tensor]
    objective: Objective
    generators: Sequence[torch.Generator]
    streams: Sequence[torch.Generator]
    warn: Callable[[str], None]
    memory: object = None
    factor_B: torch.Tensor | None = None  # of the strength, where trust fell
    travel: Travel | None = None
    chunk: int | None = None
    told: bool = False

    def loss(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """image_N3HW and loss_B, without gradients."""
        with torch.no_grad():
            image_N3HW = self.decode(x0)
            return image_N3HW, self._loss(image_N3HW, len(x0))

    def gradient(self, x0: torch.Tensor, of: torch.Tensor | None = None) -> Gradient:
        """The gradient at x0, whatever grad mode the pipeline runs in; by `of`, which x0 was
        computed from, if it is given.

        Where memory runs out, said once, it is tried again as for all that follow: by the decoder's
        next plan while that is exact, then with the same views encoded fewer at a time, then by the
        plans that are not exact. ClipguideError if the last of them needs too much.
        """
        while True:
            states = [generator.get_state() for generator in self.generators]
            try:
                return self._gradient(x0, of)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)
            self._spare()

    def _spare(self) -> None:
        if not self.told:
            self.warn("Memory ran out: the gradient is taken in smaller parts, which takes longer.")
        self.told = True
        spare = getattr(self.decode, "spare", None)  # a decoder that can
        if spare and spare(exact=True):
            return
        if self.chunk != 1:
            self.chunk = SPARING if self.chunk is None else self.chunk // 2
            return
        if not (spare and spare(exact=False)):
            raise ClipguideError(
                "There is no memory for the gradient of a single view: take a cheaper decoder "
                "(tiny or linear), fewer images at a time, or a smaller image."
            )

    def _gradient(self, x0: torch.Tensor, of: torch.Tensor | None) -> Gradient:
        modes = torch.inference_mode(False), torch.enable_grad(), no_autocast(x0.device)
        with modes[0], modes[1], modes[2], views_at_a_time(self.chunk):
            if of is None:
                of = x0 = x0.clone().requires_grad_()
            image_N3HW = self.decode(x0)
            loss_B = self._loss(image_N3HW, len(x0))
            (value,) = torch.autograd.grad(loss_B.sum(), of)
        return Gradient(image_N3HW.detach(), loss_B.detach(), value.to(x0.dtype))

    def noise_like(self, x: torch.Tensor) -> torch.Tensor:
        """Standard normal noise, that of a sample from its own stream."""
        drawn = [torch.randn(x.shape[1:], generator=g) for g in self.streams]
        return torch.stack(drawn).to(x)

    def _loss(self, image_N3HW: torch.Tensor, batch: int) -> torch.Tensor:
        frames = len(image_N3HW) // batch
        generators = [g for g in self.generators for _ in range(frames)]
        return self.objective(image_N3HW, generators).unflatten(0, (batch, frames)).mean(1)


def streams(sample: torch.Tensor) -> list[torch.Generator]:
    """One generator a sample, of a seed that is the digest of its first latents: another for every
    image, the same in a batch and alone, whatever the pipeline does with its own generators."""
    rows = sample.detach().float().cpu().numpy()
    digests = [hashlib.sha256(row.tobytes()).digest() for row in rows]
    return [torch.Generator().manual_seed(int.from_bytes(d[:7], "big")) for d in digests]


def rms(x: torch.Tensor) -> torch.Tensor:
    """Root mean square_B of each sample."""
    return x.flatten(1).square().mean(1).sqrt()


def along(value_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """value_B in a shape that multiplies x, one value a sample."""
    return value_B.to(x.device).view(-1, *[1] * (x.ndim - 1))
