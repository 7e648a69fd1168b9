"""Adversarial attacks: change images so that a loss rises. A CLIP is trained against them to become
a guide.

The attack is projected gradient ascent (Madry et al. 2018, eq. 2.1 and §2) in the balls of two
norms. It starts at a random point inside the ball, and takes `steps` steps of 2.5 · radius / steps
(the full radius if steps is 1). Each step ends with a projection. The result is in [0, 1]. `loss`
maps image_B3HW to loss_B. The radii are in units of pixels in [0, 1]. The generator is on the CPU.

Legend: B batch, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PerImage = Callable[[Tensor], Tensor]


def l2_attack(
    loss: PerImage,
    image_B3HW: Tensor,
    *,
    radius_B: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return images in an L2 ball that raise the loss. Each step follows the gradient at unit
    length."""
    radius_B111 = radius_B.to(image_B3HW).view(-1, 1, 1, 1)

    def length(x_B3HW: Tensor) -> Tensor:
        return x_B3HW.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)

    start = torch.randn(image_B3HW.shape, generator=generator).to(image_B3HW)
    share = torch.rand(len(start), 1, 1, 1, generator=generator).to(image_B3HW)
    return _ascend(
        loss,
        image_B3HW,
        start / length(start) * radius_B111 * share,
        radius_B111 * _stride(steps),
        steps,
        lambda gradient: gradient / length(gradient),
        lambda delta: delta * (radius_B111 / length(delta)).clamp_max(1),
    )


def linf_attack(
    loss: PerImage,
    image_B3HW: Tensor,
    *,
    radius_B: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return images in an L∞ ball that raise the loss. Each step follows the signs of the gradient.
    """
    radius_B111 = radius_B.to(image_B3HW).view(-1, 1, 1, 1)
    start = torch.rand(image_B3HW.shape, generator=generator).to(image_B3HW)
    return _ascend(
        loss,
        image_B3HW,
        (2 * start - 1) * radius_B111,
        radius_B111 * _stride(steps),
        steps,
        torch.sign,
        lambda delta: delta.clamp(-radius_B111, radius_B111),
    )


ATTACKS = {"l2": l2_attack, "linf": linf_attack}


def _stride(steps: int) -> float:
    """Return the length of a step as a fraction of the radius."""
    return 1.0 if steps == 1 else 2.5 / steps


def _ascend(
    loss: PerImage,
    image_B3HW: Tensor,
    delta_B3HW: Tensor,
    stride_B111: Tensor,
    steps: int,
    direction: PerImage,
    project: PerImage,
) -> Tensor:
    for _ in range(steps):
        delta_B3HW.requires_grad_(True)
        with torch.enable_grad():
            total = loss((image_B3HW + delta_B3HW).clamp(0, 1)).sum()
        (gradient,) = torch.autograd.grad(total, delta_B3HW)
        with torch.no_grad():
            delta_B3HW = project(delta_B3HW + stride_B111 * direction(gradient))
    return (image_B3HW + delta_B3HW).clamp(0, 1).detach()
