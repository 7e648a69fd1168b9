"""Batch norms folded into the convolutions before them.

In evaluation a batch norm is a scale and a shift of each channel, so that it can be a part of the
convolution's weight and bias (Jacob et al. 2018, §3.2): the same function, with one pass over
memory less (`python -m benchmarks.loops folded` times it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
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
    unless `see`, which runs the tower on some image, gives what it gave before."""
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


def skip(tower: nn.Module, see: Callable[[], torch.Tensor] | None = None) -> bool:
    """Computes convolutions with the batch norms behind them folded in, anew each time, so that
    nothing else changes: the same parameters, the same training, a third less time. The norms must
    stay in evaluation. It is undone, and False, unless `see`, if given, gives what it gave before.
    """
    with torch.no_grad():
        before = see() if see else None
    for conv, norm in pairs(tower):
        conv.norm_of = [norm]  # in a list, it is no part of the module
        conv.forward = MethodType(_folded_forward, conv)
        norm.forward = MethodType(_act if hasattr(norm, "act") else _as_it_is, norm)
    if before is None:
        return True
    with torch.no_grad():
        same = (see() - before).abs().max() <= CLOSE * before.abs().max()
    if not same:
        unskip(tower)
    return bool(same)


def unskip(tower: nn.Module) -> None:
    """Undoes `skip`; does nothing to a tower that skips nothing."""
    for conv, norm in pairs(tower):
        if hasattr(conv, "norm_of"):
            del conv.norm_of, conv.forward, norm.forward


def _folded_forward(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    (norm,) = conv.norm_of
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = (
        -norm.running_mean * scale
        if conv.bias is None
        else ((conv.bias - norm.running_mean) * scale)
    )
    if norm.affine:
        scale, shift = norm.weight * scale, norm.weight * shift + norm.bias
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    if isinstance(conv, Conv2dSame):
        x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
        return F.conv2d(x, weight, shift, conv.stride, 0, conv.dilation, conv.groups)
    return conv._conv_forward(x, weight, shift)


def _act(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return norm.act(norm.drop(x) if hasattr(norm, "drop") else x)


def _as_it_is(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x


def _same(x: torch.Tensor) -> torch.Tensor:
    return x
