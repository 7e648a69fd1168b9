"""Initial images of a drawing, and moves of an image from one frame to the next.

Shapes: 3 channels, H rows, W columns.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import ImageOps

from .. import images
from ..errors import ClipguideWarning
from .drawing import Drawing

LIGHT, BLUR, BLOBS = 0.85, 0.08, 8  # mean and deviation of the blur, and its cells per side


def fitted(file: str, width: int, height: int) -> torch.Tensor:
    """Return an image file as image_3HW in [0, 1], cropped to the aspect ratio at its centre, and
    resized. Warn once if the crop removes something. Raise UsageError if it cannot be read."""
    picture = images.load(Path(file))
    if abs(picture.width * height - picture.height * width) > max(picture.size):
        warnings.warn(
            f"{file} is {picture.width}x{picture.height}: it is cut to the shape of "
            f"{width}x{height}.",
            ClipguideWarning,
            stacklevel=3,
        )
    return images.to_tensor([ImageOps.fit(picture, (width, height))])[0]


def pale(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Return a pale blur that tiles, image_13HW in [0, 1]. It is a background for drawings, with a
    little structure to begin with."""
    small_13hw = LIGHT + BLUR * torch.randn(1, 3, BLOBS, BLOBS, generator=generator)
    around_13hw = small_13hw.repeat(1, 1, 3, 3)
    size = (3 * height, 3 * width)
    blurred = F.interpolate(around_13hw, size, mode="bicubic", align_corners=False).clamp(0, 1)
    return blurred[..., height : 2 * height, width : 2 * width].contiguous()


def move(image_13HW: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    """Return the image, enlarged about its centre, rotated anticlockwise, then shifted right and
    down. A part that comes in at an edge mirrors the image, or with tiles is the neighbouring tile.
    """
    height, width = image_13HW.shape[-2:]
    angle = math.radians(drawing.rotate)
    cos, sin = math.cos(angle) / drawing.zoom, math.sin(angle) / drawing.zoom
    right, down = (2 * s / side for s, side in zip(drawing.shift, (width, height), strict=True))
    aspect = height / width
    turn_22 = torch.tensor([[cos, -sin * aspect], [sin / aspect, cos]])
    offset_2 = -turn_22 @ torch.tensor([right, down])
    theta_123 = torch.cat([turn_22, offset_2[:, None]], 1)[None].to(image_13HW)
    grid = F.affine_grid(theta_123, list(image_13HW.shape), align_corners=False)
    if drawing.tile:
        image_13HW, grid = _around(image_13HW, grid)
    moved = F.grid_sample(image_13HW, grid, padding_mode="reflection", align_corners=False)
    return moved.clamp(0, 1)


def _around(image_13HW: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tile with a pixel of its neighbours on each side, and the places of `grid` in it."""
    height, width = image_13HW.shape[-2:]
    wrapped = (grid + 1).remainder(2) - 1
    sides = torch.tensor([width / (width + 2), height / (height + 2)]).to(grid)
    return F.pad(image_13HW, (1, 1, 1, 1), "circular"), wrapped * sides
