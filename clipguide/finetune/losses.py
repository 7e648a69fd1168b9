"""What a CLIP is trained by: losses of unit vectors, one of each image.

Legend: B batch, D embedding, K classes of a bank.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bank_loss(image_BD: Tensor, bank_KD: Tensor, target_BK: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of images against a bank of class texts -> loss_B.

    target_BK holds probabilities (rows sum to 1); image_BD and bank_KD are unit vectors.
    """
    return -(target_BK * F.log_softmax(scale * image_BD @ bank_KD.T, dim=-1)).sum(-1)


def caption_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, same_BB: Tensor | None = None
) -> Tensor:
    """CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3) -> loss_B.

    Equal captions in one batch share the probability, instead of being each other's negatives.
    Which are equal `same_BB` says; by default those of equal vectors.
    """
    same_BB = _same(text_BD) if same_BB is None else same_BB.to(image_BD.dtype)
    target_BB = same_BB / same_BB.sum(-1, keepdim=True)
    logits_BB = scale * image_BD @ text_BD.T
    return -0.5 * (
        (target_BB * logits_BB.log_softmax(-1)).sum(-1)
        + (target_BB * logits_BB.T.log_softmax(-1)).sum(-1)
    )


def sigmoid_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    bias: Tensor | float = 0.0,
    same_BB: Tensor | None = None,
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, algorithm 1) -> loss_B: each pair of the batch is right or
    wrong by itself, and equal captions (`same_BB`, as for `caption_loss`) are all right."""
    same_BB = _same(text_BD) if same_BB is None else same_BB.to(image_BD.dtype)
    return -F.logsigmoid((same_BB * 2 - 1) * (scale * image_BD @ text_BD.T + bias)).sum(-1)


def _same(text_BD: Tensor) -> Tensor:
    return (text_BD @ text_BD.T > 0.9999).to(text_BD.dtype)
