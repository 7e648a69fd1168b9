"""Zero-shot classification: find the label whose text is nearest to an image.

Shapes: B images, N labels, T texts, D the width of the embedding. Vectors have length 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..clip import Clip
from ..errors import UsageError
from .few_shot import LinearProbe, TipAdapter
from .none import NoneOfThese
from .templates import as_labels, default_templates, templates

NONE = "none of these"


@dataclass(frozen=True)
class Named:
    """A label of an image, its probability in [0, 1] and its cosine similarity in [-1, 1].

    For "none of these", the probability is that of the best label, and the cosine similarity is
    NaN.
    """

    label: str
    probability: float
    cosine: float


class Classifier:
    """A zero-shot classifier: labels as embeddings_ND of a CLIP, which are compared with images.

    Args:
        clip: the CLIP.
        labels: the names, or a mapping from each name to texts with the same meaning. A long text
            is cut with a warning, as `Clip.encode_text` does.
        templates: sentences with {} in place of the label; by default `default_templates` of the
            CLIP.
        none: whether the answer may be that an image shows none of the labels.

    Raises:
        UsageError: there are no labels, a label is empty or repeated, or there is only one label
            and `none` is False.
    """

    def __init__(
        self,
        clip: Clip,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        templates: str | os.PathLike | Sequence[str] | None = None,
        none: bool = False,
    ) -> None:
        texts = as_labels(labels)
        if len(texts) < 2 and not none:
            raise UsageError(
                f"With {next(iter(texts))!r} as the only label there is nothing to choose: give "
                "another, or allow none of these (none=True, --none)."
            )
        self.clip = clip
        self.labels = tuple(texts)
        self.templates = _templates(clip, templates)
        self.text_ND = class_vectors(clip, texts.values(), self.templates)
        self.none = (
            NoneOfThese(clip, list(texts.values()), template=self.templates[0]) if none else None
        )

    def cosines(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return the cosine_BN of image embeddings and labels."""
        return self.clip.similarity(image_BD.to(self.text_ND), self.text_ND)

    def logits(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return logit_BN: the cosines times the logit scale of the CLIP, plus its bias."""
        return self.clip.logit_scale * self.cosines(image_BD) + self.clip.logit_bias

    def probabilities(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return probability_BN, the softmax over the labels (Radford et al. 2021, §3.1.2).

        For a model with a bias, it is the sigmoid of each label, and the sum need not be 1 (SigLIP,
        Zhai et al. 2023).
        """
        logit_BN = self.logits(image_BD)
        return logit_BN.sigmoid() if self.clip.logit_bias else logit_BN.softmax(1)

    def name(
        self,
        image_BD: torch.Tensor,
        *,
        top: int = 1,
        model: LinearProbe | TipAdapter | None = None,
    ) -> list[list[Named]]:
        """Return the best labels of each image, the best first.

        An image that shows none of the labels gets only "none of these".

        Args:
            image_BD: the unit embeddings of the images.
            top: the number of labels for each image. If there are fewer labels, all of them are
                returned.
            model: a few-shot model of the same labels, which replaces the zero-shot classifier.
        """
        if top < 1:
            raise UsageError(f"top is how many labels to give, at least 1, not {top}.")
        by = model or self
        logit_BN, share_BN = by.logits(image_BD), by.probabilities(image_BD)
        if logit_BN.shape[1] != len(self.labels):
            raise UsageError(
                f"The few-shot model tells {logit_BN.shape[1]} classes apart; there are "
                f"{len(self.labels)} labels."
            )
        place_BK = logit_BN.topk(min(top, len(self.labels)), dim=1).indices
        cosine_BN = self.cosines(image_BD)
        none_B = self.none.decide(image_BD) if self.none else torch.zeros(len(image_BD)).bool()
        return [
            [Named(NONE, float(share_BN[b].max()), float("nan"))]
            if none_B[b]
            else [Named(self.labels[n], float(share_BN[b, n]), float(cosine_BN[b, n])) for n in row]
            for b, row in enumerate(place_BK.tolist())
        ]


def class_vectors(
    clip: Clip, texts: Sequence[Sequence[str]], templates: Sequence[str]
) -> torch.Tensor:
    """Return the embedding_ND of N labels.

    It is the mean of the unit embeddings of all texts of a label in all templates, normalised
    again, as in `zero_shot_classifier` of clip_benchmark.
    """
    filled = [
        [template.replace("{}", text) for text in of for template in templates] for of in texts
    ]
    unit_TD = clip.encode_text([text for of in filled for text in of])
    parts = unit_TD.split([len(of) for of in filled])
    return F.normalize(torch.stack([part_TD.mean(0) for part_TD in parts]), dim=-1)


def _templates(clip: Clip, source: str | os.PathLike | Sequence[str] | None) -> tuple[str, ...]:
    return templates(default_templates(clip.name) if source is None else source)
