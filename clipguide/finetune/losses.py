"""What a CLIP is trained by: losses of unit vectors, one of each picture.

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


def caption_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3) -> loss_B.

    Equal captions in one batch share the probability, instead of being each other's negatives.
    """
    same_BB = (text_BD @ text_BD.T > 0.9999).float()
    target_BB = same_BB / same_BB.sum(-1, keepdim=True)
    logits_BB = scale * image_BD @ text_BD.T
    return -0.5 * (
        (target_BB * logits_BB.log_softmax(-1)).sum(-1)
        + (target_BB * logits_BB.T.log_softmax(-1)).sum(-1)
    )
