"""Several objectives with gradients of equal size.

Shapes: B images, 3 channels, H rows, W columns, K objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F

from ..errors import UsageError
from .base import Generators, Nothing, Objective

_COSINES: ContextVar[list[float] | None] = ContextVar("cosines of pulls", default=None)


@contextmanager
def cosines_of_pulls() -> Iterator[list[float]]:
    """Return a context that collects a number for each gradient of a `Balanced` in this thread: the
    smallest cosine between the gradients of two objectives, as the mean over the images. −1 means
    opposed."""
    heard: list[float] = []
    token = _COSINES.set(heard)
    try:
        yield heard
    finally:
        _COSINES.reset(token)


class Balanced(Objective):
    """Several objectives whose gradients have the same size on every image.

    The value is Σ w·loss. The gradient is not the derivative of this value, but

        g = r · Σ w · g_k / rms(g_k),    r = mean of rms(g_k).

    Each rms is over the pixels of one image. The mean is over the objectives that have a gradient
    on that image. An objective without a gradient adds nothing. This is the equal-norm part of
    GradNorm (Chen et al. 2018), without its learned weights, one image at a time.

    w is the factor of an objective: in `Balanced([a, 0.5 * b])`, the gradient of b has half the
    size of that of a. There is no second derivative.
    """

    def __init__(self, objectives: Iterable[Objective]) -> None:
        self.objectives = tuple(objectives)
        if not self.objectives:
            raise UsageError("There is nothing to balance: give at least one objective.")
        if not any(objective.factored()[0] for objective in self.objectives):
            raise UsageError("Every objective to balance has weight 0.")

    def __call__(self, image_B3HW, generators=None):
        return _Balance.apply(image_B3HW, self.objectives, generators)

    def at(self, progress):
        now = [objective.at(progress) for objective in self.objectives]
        now = [objective for objective in now if not isinstance(objective, Nothing)]
        return Balanced(now) if now else Nothing()

    def terms(self):
        for objective in self.objectives:
            yield from objective.terms()


class _Balance(torch.autograd.Function):
    """Differentiate each objective at once, so that one graph at a time is in memory."""

    @staticmethod
    def forward(
        ctx,
        image_B3HW: torch.Tensor,
        objectives: tuple[Objective, ...],
        generators: Generators | None,
    ) -> torch.Tensor:
        if not ctx.needs_input_grad[0]:
            return sum(objective(image_B3HW, generators) for objective in objectives)
        terms = []
        for objective in objectives:
            weight, core = objective.factored()
            loss_B, gradient_B3HW = _differentiate(core, image_B3HW, generators)
            terms.append((weight, loss_B, gradient_B3HW, _rms(gradient_B3HW)))
        rms_KB = torch.stack([rms_B for *_, rms_B in terms])
        mean_B = rms_KB.sum(0) / (rms_KB > 0).sum(0).clamp_min(1)
        ctx.gradient_B3HW = sum(
            weight * (mean_B / rms_B.where(rms_B != 0, 1))[:, None, None, None] * gradient_B3HW
            for weight, _, gradient_B3HW, rms_B in terms
        )
        heard = _COSINES.get()
        if heard is not None and len(terms) > 1:
            heard.append(_least([weight * gradient for weight, _, gradient, _ in terms]))
        return sum(weight * loss_B for weight, loss_B, *_ in terms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream_B):
        return upstream_B[:, None, None, None] * ctx.gradient_B3HW, None, None


def _least(pulls: list[torch.Tensor]) -> float:
    """Return the smallest cosine between two of several gradients, as the mean over the images."""
    unit_KBN = F.normalize(torch.stack(pulls).flatten(2), dim=2)
    cosine_BKK = torch.einsum("kbn,lbn->bkl", unit_KBN, unit_KBN)
    return cosine_BKK.flatten(1).amin(1).mean().item()


def _differentiate(
    objective: Objective, image_B3HW: torch.Tensor, generators: Generators | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss_B and gradient_B3HW of an objective."""
    with torch.enable_grad():
        image_B3HW = image_B3HW.detach().requires_grad_()
        loss_B = objective(image_B3HW, generators)
        (gradient_B3HW,) = torch.autograd.grad(loss_B.sum(), image_B3HW)
    return loss_B.detach(), gradient_B3HW


def _rms(x_B3HW: torch.Tensor) -> torch.Tensor:
    return x_B3HW.flatten(1).square().mean(1).sqrt()
