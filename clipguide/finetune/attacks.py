"""Pictures moved so that a loss rises: what a CLIP is trained against to become a guide.

Legend: B batch, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def l2_attack(
    loss: Callable[[Tensor], Tensor],
    image_B3HW: Tensor,
    *,
    radius_B: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """The image in an L2 ball that raises the loss: projected gradient ascent (Madry et al. 2018).

    loss: image_B3HW -> loss_B. radius_B in units of pixels in [0, 1]. A random start inside the
    ball, `steps` steps of 2.5 · radius / steps (full radius when steps is 1); result in [0, 1].
    """
    radius_B111 = radius_B.view(-1, 1, 1, 1)

    def unit(x_B3HW: Tensor) -> Tensor:
        return x_B3HW / x_B3HW.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)

    start = torch.randn(image_B3HW.shape, generator=generator)
    delta = unit(start) * radius_B111 * torch.rand(len(start), 1, 1, 1, generator=generator)
    size = radius_B111 * (1.0 if steps == 1 else 2.5 / steps)
    for _ in range(steps):
        delta.requires_grad_(True)
        (grad,) = torch.autograd.grad(loss((image_B3HW + delta).clamp(0, 1)).sum(), delta)
        with torch.no_grad():
            delta = delta + size * unit(grad)
            norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            delta = delta * (radius_B111 / norm).clamp_max(1)
    return (image_B3HW + delta).clamp(0, 1).detach()
