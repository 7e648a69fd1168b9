"""Resize image tensors differentiably, in the same way as the transforms of the checkpoints.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import ClipguideWarning, UsageError
from . import naflex

LONG = 16  # ratio of sides: of a longer strip only the visible part is resized

RANGES = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
FAR = 10.0  # above 1: an estimate of x0 is not so far out of range


def unit_range(image_B3HW: torch.Tensor) -> torch.Tensor:
    """Return images as floats in [0, 1]. uint8 and uint16 are divided by their range. Floats do not
    change; if they are far above 1, there is a ClipguideWarning.

    Raises:
        UsageError: another integer type, whose range is unknown.
    """
    if image_B3HW.dtype in RANGES:
        return image_B3HW.float() / RANGES[image_B3HW.dtype]
    if not image_B3HW.is_floating_point():
        kind = str(image_B3HW.dtype).removeprefix("torch.")
        raise UsageError(
            f"An image of {kind} has no range that is known: give uint8, uint16, or floats in "
            "[0, 1]."
        )
    if not torch.compiler.is_compiling() and image_B3HW.numel():
        most = image_B3HW.detach().amax().item()
        if most > FAR:
            warnings.warn(
                f"An image has values up to {most:.4g}, and is to be in [0, 1]: divide it by its "
                "range.",
                ClipguideWarning,
                stacklevel=3,
            )
    return image_B3HW


def clamp_with_gradient(x: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Return x clamped. A gradient passes if it leads back into the range (ClampWithGrad by
    Crowson)."""
    return _Clamp.apply(x, low, high)


def tame(picture: Image.Image, config: dict, size: int) -> Image.Image:
    """Return an image that a transform can resize. Only a very long strip changes.

    "shortest" would resize a strip to gigabytes, to keep its middle: the middle alone is resized.
    "longest" would give an image without width: it gets one pixel.
    """
    short, long = sorted(picture.size)
    mode = config["resize_mode"]
    if long < LONG * short or mode in ("squash", "patches"):
        return picture
    filter_ = Image.Resampling[config["interpolation"].upper()]
    if mode == "longest":
        width, height = (max(1, round(side * size / long)) for side in picture.size)
        return picture.resize((width, height), filter_)
    resized = int(size * long / short)
    start = round((resized - size) / 2) * long / resized
    end = min(start + size * long / resized, long)
    wide = picture.width > picture.height
    box = (start, 0, end, short) if wide else (0, start, short, end)
    return picture.resize((size, size), filter_, box=box)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        return gradient * (gradient * (x - x.clamp(low, high)) >= 0), None, None


def resize(image_B3HW: torch.Tensor, config: dict, size: int) -> torch.Tensor:
    """Return images at size x size, clamped to [0, 1], resized like open_clip's transform with this
    config."""
    height, width = image_B3HW.shape[-2:]
    mode = config["resize_mode"]
    if mode == "squash":
        target = (size, size)
    elif mode == "patches":
        target = naflex.target(height, width, patch=config["patch"], patches=config["patches"])
    elif mode == "shortest":  # torchvision truncates the longer side
        target = tuple(int(size * side / min(height, width)) for side in (height, width))
    else:
        target = tuple(round(side * size / max(height, width)) for side in (height, width))
    if target != (height, width):
        filter_ = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        image_B3HW = F.interpolate(image_B3HW, target, mode=filter_, antialias=True)
    image_B3HW = clamp_with_gradient(image_B3HW)
    if mode == "patches":
        return image_B3HW
    height, width = image_B3HW.shape[-2:]
    if height < size or width < size:
        down, across = size - height, size - width
        padding = (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)
        return F.pad(image_B3HW, padding, value=config.get("fill_color", 0) / 255)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image_B3HW[..., top : top + size, left : left + size]
