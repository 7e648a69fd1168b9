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


def derivative(
    loss: torch.Tensor, of: torch.Tensor, *, half: bool = False
) -> torch.Tensor | None:
    """Return ∂loss/∂of in float32 or better; None if nothing leads from one to the other.

    Through a graph in float16, small gradients become 0 and large ones infinite. The loss is scaled
    there: each sample's gradient is that of the largest of a few factors that leaves it finite.
    Source: Micikevicius et al. 2018, section 3.2.

    Args:
        loss: the sum of the losses of the samples.
        of: what the gradient is with respect to, one row a sample.
        half: whether the graph computes in float16, whatever the dtype of `of` is.
    """
    if not loss.requires_grad:
        return None
    scales = LOSS_SCALES if half or of.dtype == torch.float16 else (1.0,)
    found = finite_B = None
    for scale in scales:
        (value,) = torch.autograd.grad(
            loss * scale, of, retain_graph=scale != scales[-1], allow_unused=True
        )
        if value is None:
            return None
        value = widen(value) / scale
        found = value if found is None else torch.where(along(finite_B, value), found, value)
        finite_B = found.flatten(1).isfinite().all(1)
        if finite_B.all():
            break
    return found
