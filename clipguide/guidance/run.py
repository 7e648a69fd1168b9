"""One run of the pipeline, as a method sees it: evaluations, outcomes, losses and gradients.

Shapes: B samples, ... the rest of a latent's shape (C, h, w; packed L, C; C, F, h, w of a video), N
= B·F decoded images (F = 1 except for videos), 3 channels of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..errors import ClipguideError, UsageError, out_of_memory
from ..objectives import Objective
from ..objectives.features import views_at_a_time
from .levels import Level
from .precision import derivative, widen, without_autocast

SPARING = 8  # views encoded at a time when memory has run out once; then half as many, and so on
NOT_A_NUMBER = (
    "The score of an image is not a number: it counts as the worst. Look at the objective if that "
    "happens often."
)
NO_GRADIENT = (
    "The loss has no gradient with respect to the images: compute it by torch alone, without "
    "detach() and no_grad(), or use a method that needs none, such as best-of or particles."
)


@dataclass(frozen=True)
class Gradient:
    """The objective at x0, and its gradient.

    Attributes:
        image_N3HW: the decoded images.
        loss_B: the loss of each sample.
        value: the gradient of the sum of the losses, in the shape of what it is with respect to;
            None if it was not asked for.
    """

    image_N3HW: torch.Tensor
    loss_B: torch.Tensor
    value: torch.Tensor | None


@dataclass(frozen=True)
class At:
    """One evaluation of the denoiser.

    Attributes:
        index: the number of the evaluation, from 0.
        timestep: the timestep, as the scheduler has it.
        level: the noise level. It converts between x0 and the output of the denoiser.
        sample: the input of the denoiser.
        model_output: its output.
        x0: the estimate of the clean latents, as the scheduler computes it.
        eta: the argument `eta` of the scheduler's `step` that the pipeline passes, or None.
    """

    index: int
    timestep: int | float | torch.Tensor
    level: Level
    sample: torch.Tensor
    model_output: torch.Tensor
    x0: torch.Tensor
    eta: float | None = None


@dataclass
class Outcome:
    """What the scheduler continues with, and what the method has seen.

    Args:
        model_output: the output of the denoiser, changed or not.
        sample: the sample, changed or not.
        image_N3HW: the decoded x0.
        loss_B: the losses before any move.
        gradient_B: the rms of the gradient over each sample, before any move.
        finite_B: False for a gradient that was NaN or infinite.
        delta: the move of x0.
        origin_B: the number of the sample that each one now goes on from, if samples have changed
            places. What the scheduler and the pipeline keep of that one goes with it.
    """

    model_output: torch.Tensor
    sample: torch.Tensor
    image_N3HW: torch.Tensor | None = None
    loss_B: torch.Tensor | None = None
    gradient_B: torch.Tensor | None = None
    finite_B: torch.Tensor | None = None
    delta: torch.Tensor | None = None
    origin_B: torch.Tensor | None = None


class Repeats(Protocol):
    """The interface of an object that repeats steps of a run: see `travel`."""

    def enlarge(self, scheduler: object) -> None:
        """Make room, after `set_timesteps`."""

    def begin(self, total: int) -> None:
        """Begin: the pipeline has its list of timesteps, of `total` evaluations."""

    def returns(self, index: int) -> bool:
        """Return whether the evaluation after the one at `index` takes the same step again."""

    def back(self, at: At, previous: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the sample, noised from where the step of `at` led back to where it began."""


@dataclass
class Run:
    """One run of the pipeline, as a method sees it.

    Attributes:
        scheduler: the scheduler of the pipeline.
        decode: a differentiable function from x0 to image_N3HW in [0, 1].
        objective: a function from image_N3HW to loss_N, at the progress of the present evaluation.
        generators: one for each sample. The objective draws from them.
        streams: one for each sample, for all other random numbers of a method.
        warn: a function that adds a sentence to the report and shows it to the user.
        total: the number of evaluations of the run.
        factor_B: the factors of the strength, below 1 if the judge's score fell or a gradient was
            invalid; None means 1.
        weight: the factor of the whole objective at this progress, which multiplies the strength.
        memory: a value of a call method for its `start`, or the state of a method.
        kept: tensors that a method keeps between evaluations, by name. A tape has them too.
        repeats: the object that repeats steps, if the method has one.
        half: whether the denoiser computes in float16.
        chunk: the number of views that are encoded at a time, since memory ran out; None means all.
        told: whether the user has been told that memory ran out.
        missed: whether the user has been told that a score is NaN.
        stop: a function that makes the pipeline stop after this evaluation; None if it cannot be
            interrupted.
    """

    scheduler: object
    decode: Callable[[torch.Tensor], torch.Tensor]
    objective: Objective
    generators: Sequence[torch.Generator]
    streams: Sequence[torch.Generator]
    warn: Callable[[str], None]
    total: int = 0
    factor_B: torch.Tensor | None = None
    weight: float = 1.0
    memory: object = None
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    repeats: Repeats | None = None
    half: bool = False
    chunk: int | None = None
    told: bool = False
    missed: bool = False
    stop: Callable[[], None] | None = None

    def loss(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image_N3HW and loss_B, without gradients. A loss that is NaN becomes infinite,
        which is the worst, with one warning."""
        with torch.no_grad(), without_autocast(x0.device):
            image_N3HW = self.decode(x0)
            loss_B = per_sample(self.objective, image_N3HW, self.generators)
        worst_B, told = worst_of_none(loss_B), self.missed
        if bool(loss_B.isnan().any()) and not told:
            self.missed = True
            self.warn(NOT_A_NUMBER)
        return image_N3HW, worst_B

    def gradient(self, x0: torch.Tensor, of: torch.Tensor | None = None) -> Gradient:
        """Return the objective at x0 and its gradient, whatever grad mode the pipeline runs in.

        If memory runs out, the run warns once, and computes this gradient and all later ones in
        smaller parts: first at the decoder's next levels of memory that are exact, then with fewer
        views encoded at a time, then at the levels that are not exact.

        Args:
            x0: the estimate of the clean latents.
            of: the tensor to take the gradient with respect to, from which x0 was computed; x0
                itself if None.

        Raises:
            ClipguideError: the memory is too small for the last of these.
            UsageError: the objective has no gradient.
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
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            without_autocast(x0.device),
            views_at_a_time(self.chunk),
        ):
            if of is None:
                of = x0 = x0.clone().requires_grad_()
            image_N3HW = self.decode(x0)
            loss_B = per_sample(self.objective, image_N3HW, self.generators)
            value = derivative(loss_B.sum(), of, half=self.half)
        if value is None:
            raise UsageError(NO_GRADIENT)
        return Gradient(image_N3HW.detach(), loss_B.detach(), value)

    def noise_like(self, x: torch.Tensor) -> torch.Tensor:
        """Draw standard normal noise in float32 or better, that of a sample from its own stream."""
        drawn = [torch.randn(x.shape[1:], generator=g) for g in self.streams]
        return torch.stack(drawn).to(widen(x[:0]))


def worst_of_none(loss_B: torch.Tensor) -> torch.Tensor:
    """Return the losses. A loss that is NaN becomes infinite, which is the worst."""
    return torch.where(loss_B.isnan(), torch.inf, loss_B)


def per_sample(
    objective: Objective, image_N3HW: torch.Tensor, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Return loss_B of an objective, the mean over a sample's frames; one generator a sample."""
    frames = len(image_N3HW) // len(generators)
    each = [generator for generator in generators for _ in range(frames)]
    return objective(image_N3HW, each).unflatten(0, (len(generators), frames)).mean(1)
