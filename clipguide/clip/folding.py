"""Batch norms folded into the convolutions before them.

In evaluation a batch norm is a scale and a shift of each channel, so that it can be a part of the
convolution's weight and bias (Jacob et al. 2018, §3.2): the same function, with one pass over
memory less (`python -m benchmarks.loops folded` times it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

CLOSE = 1e-4  # of the largest value: what rounding may change in float32


def pairs(tower: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions, each with the batch norm that was defined right behind it. Both may have been
    called in another order: only running them tells."""
    for module in tower.modules():
        children = list(module.children())
        for conv, norm in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if norm.running_var is not None and norm.num_features == conv.out_channels:
                    yield conv, norm


@torch.no_grad()
def fold(tower: nn.Module, see: Callable[[], torch.Tensor]) -> bool:
    """Folds the batch norms of a frozen tower in evaluation, in place. It is undone, and False,
    unless `see`, which runs the tower on some picture, gives what it gave before."""
    found = list(pairs(tower))
    if not found:
        return False
    before = see()
    kept = [(conv.weight, conv.bias) for conv, _ in found]
    for conv, norm in found:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        norm.forward = norm.act.forward if hasattr(norm, "act") else _same  # timm's activate too
    if (see() - before).abs().max() <= CLOSE * before.abs().max():
        for conv, _ in found:
            conv.requires_grad_(False)
        return True
    for (conv, norm), (weight, bias) in zip(found, kept, strict=True):
        conv.weight, conv.bias = weight, bias
        del norm.forward
    return False


def _same(x: torch.Tensor) -> torch.Tensor:
    return x
