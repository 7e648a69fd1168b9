"""Turn images of any aspect ratio into rows of patches, for SigLIP 2 of flexible resolution
(NaFlex, Tschannen et al. 2025, §2.4.2).

An image from the processor is one tensor, image_1NC. For each of N places it has the pixels of the
patch, whether there is a patch, and the number of rows of patches (twice 7 bits, which any dtype
holds). So images of all aspect ratios form a batch.

Shapes: B images, N places, P the side of a patch, C = 3 P² + 3, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

BASE = 128


class Patches(NamedTuple):
    """The input of the encoder: values_BNX, mask_BN, and the rows and columns of patches, shape_B2.
    """

    values: torch.Tensor
    mask: torch.Tensor
    shape: torch.Tensor


def target(height: int, width: int, *, patch: int, patches: int) -> tuple[int, int]:
    """Return the size in pixels to which an image is resized."""
    from transformers.models.siglip2.image_processing_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    return get_image_size_for_max_num_patches(height, width, patch, patches)


def packed(features: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return image_1NC of what the processor made of one image."""
    values_NX, mask_N = features["pixel_values"][0], features["pixel_attention_mask"][0]
    rows = int(features["spatial_shapes"][0][0])
    told_N3 = torch.stack(
        [mask_N, torch.full_like(mask_N, rows // BASE), torch.full_like(mask_N, rows % BASE)], 1
    )
    return torch.cat([values_NX, told_N3.to(values_NX)], 1)[None]


def unpacked(image_B1NC: torch.Tensor) -> Patches:
    """Return the patches of images that `packed` made."""
    image_BNC = image_B1NC[:, 0]
    told_BN3 = image_BNC[..., -3:].float()
    mask_BN = told_BN3[..., 0].round().long()
    rows_B = (told_BN3[:, 0, 1] * BASE + told_BN3[:, 0, 2]).round().long()
    return Patches(image_BNC[..., :-3], mask_BN, _shape(rows_B, mask_BN))


def cut(image_B3HW: torch.Tensor, patch: int) -> Patches:
    """Return the patches of normalised images whose sides are multiples of P. It is differentiable.
    """
    rows = image_B3HW.shape[-2] // patch
    # unfold puts channels first in a patch, the encoder puts them last
    value_BXN = F.unfold(image_B3HW, patch, stride=patch)
    value_BN3PP = value_BXN.transpose(1, 2).unflatten(2, (3, patch, patch))
    mask_BN = torch.ones(value_BXN.shape[::2], dtype=torch.long, device=image_B3HW.device)
    rows_B = torch.full((len(image_B3HW),), rows, device=image_B3HW.device)
    values_BNX = value_BN3PP.permute(0, 1, 3, 4, 2).flatten(2)
    return Patches(values_BNX, mask_BN, _shape(rows_B, mask_BN))


def _shape(rows_B: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
    return torch.stack([rows_B, mask_BN.sum(1) // rows_B], 1)
