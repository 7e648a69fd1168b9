"""The two encoders of a CLIP for exporters: with the preprocessing inside, and unit vectors as
output.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns, S the side in pixels of the
encoder, D the width of the embedding.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..clip import Clip


class ImageTower(nn.Module):
    """A module from image_B3HW, RGB in [0, 1] of any size, to unit vectors_BD, both float32.

    It resizes, crops and pads like `Clip.encode_image`. No runtime has torch's antialiased resize.
    It is therefore written as two products with matrices of filter weights, which depend only on H
    and W.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.model = clip._model
        self.dtype, self.size = clip.dtype, clip.image_size
        self.mode = clip.preprocess["resize_mode"]
        self.bilinear = clip.preprocess["interpolation"] == "bilinear"
        self.fill = clip.preprocess.get("fill_color", 0) / 255
        for key in ("mean", "std"):
            value = torch.tensor(clip.preprocess[key], dtype=torch.float32)
            self.register_buffer(key, value[:, None, None], persistent=False)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        pixel_B3SS = ((self.squared(image_B3HW) - self.mean) / self.std).to(self.dtype)
        return _unit(self.model.encode_image(pixel_B3SS))

    def squared(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return images as `clip.resize` makes them: S x S, in [0, 1]."""
        height, width = image_B3HW.shape[-2:]
        # numbers of rows and columns are tensors, which a graph computes with
        rows = torch.scalar_tensor(height, dtype=torch.int64)
        columns = torch.scalar_tensor(width, dtype=torch.int64)
        target_rows, target_columns = self._target(rows, columns)
        row_SH, seen_S = self._weights(rows, target_rows, torch.arange(height))
        column_SW, seen_too_S = self._weights(columns, target_columns, torch.arange(width))
        image_B3SS = (row_SH @ image_B3HW @ column_SW.T).clamp(0, 1)
        if self.mode != "longest":
            return image_B3SS
        seen_SS = seen_S[:, None] & seen_too_S
        return torch.where(seen_SS, image_B3SS, torch.full_like(image_B3SS, self.fill))

    def _target(self, rows: torch.Tensor, columns: torch.Tensor) -> list[torch.Tensor]:
        """Return the size of both sides after the resize, before the crop or the padding."""
        if self.mode == "squash":
            return [torch.full_like(side, self.size) for side in (rows, columns)]
        if self.mode == "shortest":  # torchvision truncates
            return [self.size * side // torch.minimum(rows, columns) for side in (rows, columns)]
        longer = torch.maximum(rows, columns)
        return [_rounded(2 * self.size * side, longer).clamp(min=1) for side in (rows, columns)]

    def _weights(
        self, side: torch.Tensor, target: torch.Tensor, place_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight_SN from N pixels to the S kept pixels of `target`, and which of these are
        not padding. The filters are Pillow's (Keys 1981 with a = -1/2), widened by the reduction.
        """
        excess = target - self.size
        first = torch.where(excess >= 0, _half(excess), -(-excess // 2))  # cropped, or padded
        kept_S = torch.arange(self.size) + first
        scale = side.float() / target.float()
        width = scale.clamp(min=1)
        centre_S = scale * (kept_S.float() + 0.5)
        x_SN = ((place_N.float() + 0.5 - centre_S[:, None]) / width).abs()
        weight_SN = (1 - x_SN).clamp(min=0) if self.bilinear else _keys(x_SN)
        total_S1 = weight_SN.sum(1, keepdim=True)
        seen_S = (kept_S >= 0) & (kept_S < target)
        return weight_SN / torch.where(seen_S[:, None], total_S1, torch.ones(())), seen_S


class TextTower(nn.Module):
    """A module from tokens_BL, int64, to unit vectors_BD, float32."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.model = clip._model

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return _unit(self.model.encode_text(tokens_BL))


def unused(tower: nn.Module, given: torch.Tensor) -> list[str]:
    """Return the names of the parameters that a float32 encoder does not use: those of the other
    encoder, and of batch norms that were folded."""
    tower = copy.deepcopy(tower).requires_grad_()
    names, values = zip(*tower.named_parameters())
    with torch.enable_grad():
        found = torch.autograd.grad(tower(given).sum(), values, allow_unused=True)
    return [name for name, gradient in zip(names, found) if gradient is None]


def without(tower: nn.Module, names: list[str]) -> nn.Module:
    """Return a copy of an encoder in which these parameters are empty, and are not written.
    """
    tower = copy.deepcopy(tower)
    for name in names:
        owner, _, last = name.rpartition(".")
        empty = torch.empty(0, dtype=tower.get_parameter(name).dtype)
        setattr(tower.get_submodule(owner), last, nn.Parameter(empty, requires_grad=False))
    return tower


def _unit(features_BD: torch.Tensor) -> torch.Tensor:
    """Return vectors_BD of length 1, with operations that every runtime has."""
    features_BD = features_BD.float()
    square_B1 = (features_BD * features_BD).sum(-1, keepdim=True)
    return features_BD / square_B1.sqrt().clamp(min=1e-12)


def _keys(x: torch.Tensor) -> torch.Tensor:
    """Return the cubic convolution (Keys 1981, eq. 15, a = -1/2) of |x|."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))


def _half(number: torch.Tensor) -> torch.Tensor:
    """Return number / 2 of an integer, rounded half to even, as Python rounds."""
    return _rounded(number, torch.ones_like(number))


def _rounded(twice: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Return twice / (2 * by) of integers, rounded half to even."""
    up = (twice + by) // (2 * by)
    tie = (twice + by) % (2 * by) == 0
    return up - (tie & (up % 2 == 1)).long()
