"""Scores of pictures against texts, on unit vectors, as the literature defines them.

Shapes: B images, N texts, R references, D the width of the embedding; ... whatever both have.
"""

from __future__ import annotations

import torch

from .errors import UsageError

W = 2.5  # of Hessel et al. 2021, to stretch cosines towards the range of 0 to 1


def cosine(image_BD: torch.Tensor, text_ND: torch.Tensor) -> torch.Tensor:
    """Cosines_BN of unit vectors, in [-1, 1]. UsageError if they are not of one width."""
    if image_BD.shape[-1] != text_ND.shape[-1]:
        raise UsageError(
            f"Vectors of {image_BD.shape[-1]} and of {text_ND.shape[-1]} numbers cannot be "
            "compared: embed both by the same CLIP."
        )
    return (image_BD @ text_ND.T).clamp(-1, 1)


def clip_score(cosine: torch.Tensor) -> torch.Tensor:
    """CLIPScore of cosines, 2.5 max(cos, 0), in [0, 2.5] (Hessel et al. 2021, eq. 1).

    Torchmetrics gives 100 max(cos, 0) by this name, and others 100 cos.
    """
    return W * cosine.clamp(0, 1)


def ref_clip_score(
    clip_score: torch.Tensor, caption_D: torch.Tensor, references_RD: torch.Tensor
) -> torch.Tensor:
    """RefCLIPScore: the harmonic mean of a caption's CLIPScore and of its cosine with the nearest
    reference, or 0 if that is negative; in [0, 10/7] (Hessel et al. 2021, eq. 2).

    For one caption, or for several at once: clip_score_..., caption_...D and references_...RD.
    UsageError if there is no reference.
    """
    if not references_RD.shape[-2]:
        raise UsageError("RefCLIPScore needs a reference text to compare with.")
    nearest = (references_RD @ caption_D[..., None])[..., 0].amax(-1).clamp(0, 1)
    total = clip_score + nearest
    return torch.where(total > 0, 2 * clip_score * nearest / total, 0.0)  # 0 and 0: worst, not NaN


def probability(
    cosine_BN: torch.Tensor, *, logit_scale: float, logit_bias: float = 0.0
) -> torch.Tensor:
    """Probability_BN of each text, in [0, 1], from a CLIP's own logits, scale · cos + bias.

    Without a bias they are a softmax over the texts, which sums to 1 (Radford et al. 2021, §3.1.2);
    with one, as SigLIP has, a sigmoid of each text on its own (Zhai et al. 2023, §3.2).
    """
    logits_BN = logit_scale * cosine_BN + logit_bias
    return logits_BN.sigmoid() if logit_bias else logits_BN.softmax(-1)
