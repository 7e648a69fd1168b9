"""Gradients through torch's attention without a copy of its weights for each place.

`nn.MultiheadAttention` puts places first by a view, (B, L, D) to (L, B, D). PyTorch's linear layer
multiplies what is laid out so, and whose weights want no gradient, place by place: forward and back
by `bmm`, which copies the weights L times in bfloat16. Laid out in that order to begin with, it is
one product. The values are the same.

Shapes: B images, L places, D the width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def one_product(model: nn.Module) -> Iterator[None]:
    """Meanwhile attention in `model` multiplies by its weights once, where gradients are taken."""
    with contextlib.ExitStack() as stack:
        for module in model.modules() if torch.is_grad_enabled() else ():
            if isinstance(module, nn.MultiheadAttention) and module.batch_first:
                hook = module.register_forward_pre_hook(_places_first)
                stack.callback(hook.remove)
        yield


def _places_first(module: nn.Module, args: tuple) -> tuple:
    """Its tensors laid out as places, images; one that is given twice stays one."""
    laid = {id(x_BLD): x_BLD for x_BLD in args if isinstance(x_BLD, torch.Tensor)}
    for key, x_BLD in laid.items():
        if x_BLD.ndim == 3:
            laid[key] = x_BLD.transpose(0, 1).contiguous().transpose(0, 1)
    return tuple(laid.get(id(value), value) for value in args)
