"""The contract of a method: what it is given, what it gives back.

A step method acts at each evaluation of the denoiser, so the pipeline itself is steered. A call
method runs the pipeline its own way, by `s(…)` of `with steer(pipe, …) as s`.

Shapes: B samples, ... the rest of a latent's shape (C, h, w; packed L, C; C, F, h, w of a video),
N = B·F decoded images (F = 1 but for videos), 3 channels of H x W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ..errors import ClipguideError, UsageError, out_of_memory
from ..objectives import Objective
from ..objectives.features import views_at_a_time
from .levels import Level, widen

WINDOW = (0.1, 1.0)
MOST = 10_000  # of a method's whole numbers
SPARING = 8  # views encoded at a time when memory has run out once; then half as many, and so on
NOT_A_NUMBER = (
    "The score of an image is not a number: it counts as the worst. Look at the objective if that "
    "happens often."
)
LOSS_SCALES = tuple(2.0**k for k in (16, 12, 8, 4, 0, -6))  # of gradients in float16


@dataclass(frozen=True)
class Gradient:
    """The objective at x0: the decoded image, loss_B, and the gradient of their sum with respect to
    x0."""

    image_N3HW: torch.Tensor
    loss_B: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class At:
    """One evaluation: the input and output of the denoiser, the noise level, and the x0 as the
    scheduler takes it. `eta` is what the pipeline passes to `step`, or None."""

    index: int
    timestep: int | float | torch.Tensor
    level: Level
    sample: torch.Tensor
    model_output: torch.Tensor
    x0: torch.Tensor
    eta: float | None = None


@dataclass
class Outcome:
    """The new input of the scheduler's step, and the measurements.

    image_N3HW is the decoded x0. loss_B and gradient_B (rms over a sample) are those before any
    move. `finite_B` is False where a gradient was not a number. `delta` is the move of x0.
    """

    model_output: torch.Tensor
    sample: torch.Tensor
    image_N3HW: torch.Tensor | None = None
    loss_B: torch.Tensor | None = None
    gradient_B: torch.Tensor | None = None
    finite_B: torch.Tensor | None = None
    delta: torch.Tensor | None = None


class Repeats(Protocol):
    """The interface that repeats steps of a run: see `travel`."""

    def enlarge(self, scheduler: object) -> None:
        """Make room for the repeated steps after `set_timesteps`."""

    def begin(self, total: int) -> None:
        """Handle that the pipeline has its list of timesteps, of `total` evaluations."""

    def returns(self, index: int) -> bool:
        """Return whether the evaluation after the one at `index` repeats the same step."""

    def back(self, at: At, previous: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the sample after the step of `at`, noised back to the level where the step began.
        """


@dataclass
class Run:
    """One run of the pipeline, as a method sees it.

    Attributes:
        scheduler: the one that is stepped.
        decode: x0 -> image_N3HW in [0, 1], differentiable.
        objective: image_N3HW -> loss_N, as it is at the progress of the evaluation at hand.
        generators: one a sample, which feed the objective.
        streams: one a sample, for all else that a method draws.
        warn: takes a sentence to the report and to the user.
        total: how many evaluations the pipeline takes.
        factor_B: of the strength, where trust fell or a gradient was no number; None is 1.
        weight: of the strength: the factor of the whole objective at this progress.
        memory: what a call method has for its own `start`, or what a method keeps.
        repeats: what takes steps again, if the method asked for it.
        chunk: views encoded at a time since memory ran out; None is all of them.
        told: whether it was said that memory ran out.
        missed: whether it was said that a score is not a number.
        stop: has the pipeline take no more evaluations; None where it cannot be interrupted.
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
    repeats: Repeats | None = None
    chunk: int | None = None
    told: bool = False
    missed: bool = False
    stop: Callable[[], None] | None = None

    def loss(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image_N3HW and loss_B, without gradients. A loss that is not a number becomes
        infinite, with one warning."""
        with torch.no_grad(), without_autocast(x0.device):
            image_N3HW = self.decode(x0)
            loss_B = per_sample(self.objective, image_N3HW, self.generators)
        worst_B, told = worst_of_none(loss_B), self.missed
        if bool(loss_B.isnan().any()) and not told:
            self.missed = True
            self.warn(NOT_A_NUMBER)
        return image_N3HW, worst_B

    def gradient(self, x0: torch.Tensor, of: torch.Tensor | None = None) -> Gradient:
        """Return the gradient at x0, or at `of`, from which x0 was computed. The grad mode of the
        pipeline does not matter.

        If memory runs out, it warns once and tries again, now and later: with the decoder's next
        exact plan, then with fewer views at a time, then with plans that are not exact. It raises
        ClipguideError if the last one needs too much.
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
            value = _derivative(loss_B.sum(), of)
        return Gradient(image_N3HW.detach(), loss_B.detach(), value)

    def noise_like(self, x: torch.Tensor) -> torch.Tensor:
        """Return standard normal noise in float32 or better, each sample from its own stream."""
        drawn = [torch.randn(x.shape[1:], generator=g) for g in self.streams]
        return torch.stack(drawn).to(widen(x[:0]))


def _derivative(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return ∂loss/∂of in float32 or better. In a float16 graph, small gradients become 0 and large
    ones infinite. The loss is therefore scaled (Micikevicius et al. 2018, section 3.2), by the
    largest of a few factors with a finite result."""
    scales = LOSS_SCALES if of.dtype == torch.float16 else (1.0,)
    for scale in scales:
        last = scale == scales[-1]
        (value,) = torch.autograd.grad(loss * scale, of, retain_graph=not last)
        if last or value.isfinite().all():
            return widen(value) / scale
    raise AssertionError


def worst_of_none(loss_B: torch.Tensor) -> torch.Tensor:
    """Return losses in which values that are not numbers are infinite, the worst value."""
    return torch.where(loss_B.isnan(), torch.inf, loss_B)


def per_sample(
    objective: Objective, image_N3HW: torch.Tensor, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Return loss_B of an objective, the mean over the frames of a sample, with one generator per
    sample."""
    frames = len(image_N3HW) // len(generators)
    each = [generator for generator in generators for _ in range(frames)]
    return objective(image_N3HW, each).unflatten(0, (len(generators), frames)).mean(1)


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Return a context without autocast."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def call_signature(pipe: object) -> inspect.Signature:
    """Return the signature of a pipeline's call. For a subclass that passes *args on, return that
    of its base."""
    for base in type(pipe).__mro__:
        call = vars(base).get("__call__")
        if call is None:
            continue
        found = inspect.signature(call)
        parameters = list(found.parameters.values())[1:]
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return found.replace(parameters=parameters)
    return inspect.signature(pipe.__call__)


def rms(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean square_B of each sample, in float32 or better."""
    return widen(x).flatten(1).square().mean(1).sqrt()


def along(value_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return value_B in a shape that multiplies x, one value per sample."""
    return value_B.to(x.device).view(-1, *[1] * (x.ndim - 1))


class Sampler(Protocol):
    """What a call method gets: the pipeline, which it runs."""

    pipe: object

    def sample(
        self,
        *,
        by: Method | None,
        differentiable: bool = False,
        memory: object = None,
        **settings: object,
    ) -> object:
        """Run the pipeline once, steered by a method or not, with gradients or without. Return its
        result. `memory` goes to the method's `start`."""

    def initial_noise(self, **settings: object) -> torch.Tensor:
        """Return the initial latents of the pipeline, as its `latents` argument takes them."""

    def conditioning(self, of: str) -> contextlib.AbstractContextManager:
        """Return a context that adds `shift_BLD` to the embedding of the "prompt" or of the empty
        prompt, "null". `size_B` is its rms."""

    def preview(self, *, until: float, by: Method | None, **settings: object) -> torch.Tensor:
        """Return score_B of the decoded x0 after the share `until` of a run's steps. The run ends
        there."""

    def borrowing(
        self, *, scheduler: str | None, adapter: str | None
    ) -> contextlib.AbstractContextManager:
        """Return a context in which the pipeline has another scheduler class of diffusers, and an
        additional LoRA adapter of its denoiser."""

    def without(self, adapter: str | None) -> contextlib.AbstractContextManager:
        """Return a context in which that adapter is inactive."""

    def identity(self, **settings: object) -> str | None:
        """Return a digest of everything that affects an unsteered run with these settings and its
        score, or None if it is unknown."""

    def ending(self, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the final latents of an unsteered run, and score_B = −loss_B of their images."""

    def through(self, latents: torch.Tensor, **settings: object) -> Gradient:
        """Return the objective at the end of an unsteered run, and its gradient with respect to the
        latents."""

    def rank(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return score_B of finished images, −objective; higher is better."""

    def candidate(self, score_B: torch.Tensor, better_B: torch.Tensor | None = None) -> None:
        """Report a candidate of each image. With `better_B`, the trace of the latest run is kept
        for these images, and the earlier trace for the others."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The base class of all methods. Its fields say when a method acts.

    Args:
        window: the noise levels to act at: 1 is pure noise, 0 is clean.
        every: act at every k-th step of the window.

    Raises:
        UsageError: a value is out of range.
    """

    name: ClassVar[str]
    by_call: ClassVar[bool] = False  # whether only s(…) can run it
    of_images: ClassVar[bool] = False  # whether it looks at finished images, not at videos
    differentiates: ClassVar[bool] = False  # whether it takes gradients through the denoiser
    fades: ClassVar[bool] = False  # whether its moves have a strength, which may fall to 0

    window: tuple[float, float] = WINDOW
    every: int = 1

    def __post_init__(self) -> None:
        window = self.window
        pair = isinstance(window, (tuple, list)) and len(window) == 2
        if not (pair and all(map(_is_number, window)) and 0 <= window[0] < window[1] <= 1):
            raise UsageError(f"The window lies in [0, 1], the lower first, not {window}.")
        object.__setattr__(self, "window", tuple(window))
        self.whole(1, "every")

    def at_least(self, low: float, *names: str) -> None:
        """Raise UsageError unless these fields are finite numbers from `low`."""
        for name in names:
            value = getattr(self, name)
            if not (_is_number(value) and value >= low):
                raise UsageError(f"`{name}` must be a number from {low}, not {value!r}.")

    def whole(self, low: int, *names: str) -> None:
        """Raise UsageError unless these fields are whole numbers from `low` to MOST."""
        for name in names:
            value = getattr(self, name)
            if not (type(value) is int and low <= value <= MOST):
                raise UsageError(
                    f"`{name}` must be a whole number from {low} to {MOST}, not {value!r}."
                )

    @property
    def idle(self) -> bool:
        """Return whether the method changes no bit."""
        return False

    @property
    def needs_gradient(self) -> bool:
        """Return whether it needs the gradient of the objective."""
        return True

    @property
    def taped(self) -> bool:
        """Return whether a run can continue from a tape: the method keeps nothing between steps."""
        return False

    @property
    def runs(self) -> int:
        """Return about how many runs of the pipeline an image takes."""
        return 1

    @property
    def candidates(self) -> int:
        """Return how many samples of an image it draws, in one batch or one after the other."""
        return 1

    def options(self) -> dict[str, object]:
        """Return the fields that differ from their defaults, for `configure`."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def covers(self, noise: float) -> bool:
        """Return whether a noise level is in the window."""
        return self.window[0] <= noise <= self.window[1]

    def check(self, pipe: object) -> None:
        """Raise ClipguideError if the method cannot steer this pipeline."""

    def start(self, run: Run) -> Callable[[At], Outcome]:
        """Begin a run of the pipeline. Return the function that acts at each due evaluation."""
        raise NotImplementedError

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Change the scheduler's new sample before the pipeline gets it, at every evaluation.

        None keeps the sample. `at` is as the scheduler sees it.
        """
        return None

    def repeats(self) -> Repeats | None:
        """Return what repeats steps of the scheduler while the context is open."""
        return None

    def call(self, sampler: Sampler, **settings: object) -> object:
        """Run the pipeline with its own arguments, and return its result."""
        return sampler.sample(by=self, **settings)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
