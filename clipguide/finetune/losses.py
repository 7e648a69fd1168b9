"""Losses that train a CLIP, from unit vectors, one loss per image.

Legend: B batch, D embedding, K classes of a bank.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bank_loss(image_BD: Tensor, bank_KD: Tensor, target_BK: Tensor, scale: Tensor) -> Tensor:
    """Return loss_B, the cross-entropy of images against a bank of class texts.

    target_BK holds probabilities (rows sum to 1). image_BD and bank_KD are unit vectors.
    """
    return -(target_BK * F.log_softmax(scale * image_BD @ bank_KD.T, dim=-1)).sum(-1)


def caption_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, same_BB: Tensor | None = None
) -> Tensor:
    """Return loss_B, CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3).

    Equal captions in a batch share the probability: they are not negatives of each other. `same_BB`
    says which are equal; by default those with equal vectors.
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
    """Return loss_B of SigLIP (Zhai et al. 2023, algorithm 1). Each pair of the batch is right or
    wrong by itself. Pairs of equal captions (`same_BB`, as for `caption_loss`) are right."""
    same_BB = _same(text_BD) if same_BB is None else same_BB.to(image_BD.dtype)
    return -F.logsigmoid((same_BB * 2 - 1) * (scale * image_BD @ text_BD.T + bias)).sum(-1)


def _same(text_BD: Tensor) -> Tensor:
    return (text_BD @ text_BD.T > 0.9999).to(text_BD.dtype)
