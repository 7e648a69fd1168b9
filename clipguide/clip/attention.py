"""Take gradients through torch's attention without a copy of its weights for each place.

`nn.MultiheadAttention` moves places first with a view, (B, L, D) to (L, B, D). For this layout, if
the weights need no gradient, PyTorch's linear layer multiplies place by place with `bmm`. In
bfloat16 this copies the weights L times. If the tensors have this layout in memory, one product is
enough. The values are the same.

Shapes: B images, L places, D the width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def one_product(model: nn.Module) -> Iterator[None]:
    """Return a context in which attention in `model` multiplies by its weights once when it takes
    gradients."""
    with contextlib.ExitStack() as stack:
        for module in model.modules() if torch.is_grad_enabled() else ():
            if isinstance(module, nn.MultiheadAttention) and module.batch_first:
                hook = module.register_forward_pre_hook(_places_first)
                stack.callback(hook.remove)
        yield


def _places_first(module: nn.Module, args: tuple) -> tuple:
    """Return tensors with the layout (places, images) in memory. A tensor that is given twice stays
    one."""
    laid = {id(x_BLD): x_BLD for x_BLD in args if isinstance(x_BLD, torch.Tensor)}
    for key, x_BLD in laid.items():
        if x_BLD.ndim == 3:
            laid[key] = x_BLD.transpose(0, 1).contiguous().transpose(0, 1)
    return tuple(laid.get(id(value), value) for value in args)
