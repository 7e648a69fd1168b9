"""Scores of images against texts, from unit embeddings, as the literature defines them.

Shapes: B images, N texts, R references, D the width of the embedding. `...` in a name stands for
any number of further dimensions.
"""

from __future__ import annotations

import torch

from .errors import UsageError

W = 2.5  # from Hessel et al. 2021; it stretches cosines towards the range of 0 to 1


def cosine(image_BD: torch.Tensor, text_ND: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarities_BN of unit embeddings, in [-1, 1].

    Raises:
        UsageError: the embeddings differ in width.
    """
    if image_BD.shape[-1] != text_ND.shape[-1]:
        raise UsageError(
            f"Vectors of {image_BD.shape[-1]} and of {text_ND.shape[-1]} numbers cannot be "
            "compared: embed both by the same CLIP."
        )
    return (image_BD @ text_ND.T).clamp(-1, 1)


def clip_score(cosine: torch.Tensor) -> torch.Tensor:
    """Return the CLIPScore of cosine similarities: 2.5 max(cos, 0), in [0, 2.5].

    torchmetrics uses the same name for 100 max(cos, 0), and other programs for 100 cos.

    Source: Hessel et al. 2021, eq. 1.
    """
    return W * cosine.clamp(0, 1)


def ref_clip_score(
    clip_score: torch.Tensor, caption_D: torch.Tensor, references_RD: torch.Tensor
) -> torch.Tensor:
    """Return RefCLIPScore, in [0, 10/7].

    It is the harmonic mean of the CLIPScore of a caption and its cosine similarity with the nearest
    reference. A negative similarity counts as 0.

    Args:
        clip_score: clip_score_..., of one caption or of several.
        caption_D: caption_...D, their unit embeddings.
        references_RD: references_...RD, the unit embeddings of R references for each.

    Raises:
        UsageError: there is no reference.

    Source: Hessel et al. 2021, eq. 2.
    """
    if not references_RD.shape[-2]:
        raise UsageError("RefCLIPScore needs a reference text to compare with.")
    nearest = (references_RD @ caption_D[..., None])[..., 0].amax(-1).clamp(0, 1)
    total = clip_score + nearest
    return torch.where(total > 0, 2 * clip_score * nearest / total, 0.0)  # 0 and 0: worst, not NaN


def probability(
    cosine_BN: torch.Tensor, *, logit_scale: float, logit_bias: float = 0.0
) -> torch.Tensor:
    """Return the probability_BN of each text, in [0, 1], from the logits scale · cos + bias.

    Without a bias, it is the softmax over the texts, which sums to 1 (Radford et al. 2021, §3.1.2).
    With a bias, as SigLIP has, it is the sigmoid of each text (Zhai et al. 2023, §3.2).
    """
    logits_BN = logit_scale * cosine_BN + logit_bias
    return logits_BN.sigmoid() if logit_bias else logits_BN.softmax(-1)
