"""Precision: computations that need float32 for every dtype of a pipeline, and gradients in
float16.

Shapes: B samples, ... the rest of a latent's shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

LEAST = 1e-30  # an rms that is divided by
LOSS_SCALES = tuple(2.0**k for k in (16, 12, 8, 4, 0, -6))  # of gradients in float16


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rms(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean square_B of each sample, in float32 or better."""
    return widen(x).flatten(1).square().mean(1).sqrt()


def along(value_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return value_B in a shape that multiplies x, one value a sample."""
    return value_B.to(x.device).view(-1, *[1] * (x.ndim - 1))


def unit(x: torch.Tensor) -> torch.Tensor:
    """Return x with an rms of 1 in each sample; 0 stays 0."""
    return x / along(rms(x).clamp_min(LEAST), x)


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Keep types as they are, whatever autocast the pipeline runs under."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def derivative(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor | None:
    """Return ∂loss/∂of in float32 or better; None if nothing leads from one to the other.

    Through a graph in float16, small gradients become 0 and large ones infinite. The loss is scaled
    there by the largest of a few factors that leaves the gradient finite. Source: Micikevicius et
    al. 2018, section 3.2.
    """
    if not loss.requires_grad:
        return None
    scales = LOSS_SCALES if of.dtype == torch.float16 else (1.0,)
    for scale in scales:
        last = scale == scales[-1]
        (value,) = torch.autograd.grad(
            loss * scale, of, retain_graph=not last, allow_unused=True
        )
        if value is None:
            return None
        if last or value.isfinite().all():
            return widen(value) / scale
    raise AssertionError
