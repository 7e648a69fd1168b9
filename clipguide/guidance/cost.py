"""Estimate the cost of an evaluation of a denoiser from the sizes of its weights.

A linear layer or a convolution does two operations per weight at each place. A transformer has one
place per token. Level i of a U-Net has a quarter of the places of level i − 1. Attention between
tokens is left out, and the text is assumed to have as many tokens as the image. The estimate is
within 35 % of the exact count (tests/test_ladder.py). It needs only shapes, so it is equal on every
machine and with every kind of offloading.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .pipe_parts import denoiser
from .weights import uncompiled


def of_step(pipe: object, x0_shape: tuple[int, ...]) -> float:
    """Return the operations of a denoiser for all samples of a step, with classifier-free guidance
    where the pipeline says that it is on; 0 where nothing is known of the model.

    Args:
        pipe: a diffusers pipeline.
        x0_shape: the shape of the latents of the scheduler: B, C, h, w; packed B, L, C; or of
            videos B, C, F, h, w.
    """
    model = denoiser(pipe)
    if model is None:
        return 0.0
    model, batch = uncompiled(model), x0_shape[0]
    guided = bool(getattr(pipe, "do_classifier_free_guidance", False))
    places = x0_shape[1] if len(x0_shape) == 3 else math.prod(x0_shape[2:])
    if hasattr(model, "up_blocks"):
        each = _unet(model, places)
    else:
        patch = 1 if len(x0_shape) == 3 else _patch(model)
        each = 2.0 * _weights(model) * places / patch
    return each * batch * (1 + guided)


def worth(
    pipe: object, operations: float, step: float, *, half: bool, on: torch.device
) -> float:
    """Return what a step comes to with so many operations more, as a multiple of plain sampling. It
    is infinite where nothing is known of the denoiser. Beside a denoiser in half precision,
    arithmetic that is not `half` takes twice as long on an accelerator."""
    size = getattr(denoiser(pipe), "dtype", torch.float32).itemsize
    slow = 2 if on.type != "cpu" and size < 4 and not half else 1
    return 1 + slow * operations / step if step else math.inf


def _unet(model: nn.Module, places: int) -> float:
    down, up = list(model.down_blocks), list(model.up_blocks)[::-1]
    ends = [(0, "conv_in"), (len(down) - 1, "mid_block"), (0, "conv_out")]
    levels = [*enumerate(down), *enumerate(up)]
    levels += [(level, getattr(model, name)) for level, name in ends if getattr(model, name, None)]
    return 2 * sum(_weights(part) * places / 4**level for level, part in levels)


def _patch(model: nn.Module) -> int:
    """Return the number of latents per token."""
    size = model.config.get("patch_size") or 1
    return math.prod(size) if isinstance(size, (tuple, list)) else size**2


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)
