"""Refine a finished image: run the optimisation loop on its latents.

Shapes: 1 image, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import nn

from ..canvases import Latent
from ..objectives import Objective, Similarity
from ..optimize import Loop

RATE = 0.02  # Adam's learning rate, as a fraction of the rms of the latents


def refine(
    image_13HW: torch.Tensor,
    vae: nn.Module,
    objective: Objective,
    *,
    judge: Similarity | None,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return image_13HW in [0, 1] after `steps` of the loop. With a judge, return the image with
    the best score, which can be the original one."""
    vae.requires_grad_(False)
    height, width = image_13HW.shape[-2:]
    canvas = Latent(vae, height, width, [generator])
    canvas.encode(image_13HW)
    size = canvas.latents_BChw.detach().square().mean().sqrt().item()
    loop = Loop(
        canvas,
        objective,
        steps=steps,
        lr=RATE * size,
        judge=judge,
        score_every=5,
        generators=[generator],
    )
    for _ in loop:
        pass
    better = loop.best().to(image_13HW)
    if judge and (judge.score(better) <= judge.score(image_13HW)).all():
        return image_13HW
    return better
