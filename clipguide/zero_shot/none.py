"""Decide whether an image shows none of the labels, which compete with a vocabulary of other words.

Shapes: B images, N labels, W words of the background, D the width of the embedding.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence

import torch

from ..clip import Clip
from ..errors import ClipguideWarning, UsageError
from ..prompts import read_lines
from .templates import HERE

# factor of the model's scale; other values are no better (benchmarks/none_of_these.py)
SHARPNESS = 1.0
KIN = 0.9  # words mean the same if they are nearer than this share of words to their nearest word
FALSE = 0.05  # share of images with a label that may be rejected


class NoneOfThese:
    """Decide whether an image shows none of the labels, against some 1,700 nouns.

    The score is the log odds of the labels in one softmax with the nouns: see `evidence`. An image
    whose score is below `threshold` shows none of the labels. The threshold of the embedded models
    comes from `none.json`; it rejects 5 % of drawings that do show a label. `calibrate` sets the
    threshold from your own images. For any other model it is 0, and `calibrated` is False.

    Args:
        clip: the CLIP.
        texts: the texts of each label.
        template: what each text and noun is put into, as in "a photo of a {}".
        background: other words in place of the nouns.
        sharpness: the factor of the logits in the softmax.

    Raises:
        UsageError: no word of the background differs from the labels.

    Source: NegLabel (Jiang et al. 2024), which takes words far from the labels as negatives. Here
    all words count, except those that mean the same as a label.
    """

    def __init__(
        self,
        clip: Clip,
        texts: Sequence[Sequence[str]],
        *,
        template: str = "{}",
        background: Sequence[str] | None = None,
        sharpness: float = SHARPNESS,
    ) -> None:
        words = list(background or read_lines(HERE / "background.txt", what="words", comments=True))
        own = [text for of in texts for text in of]
        self.clip, self.sharpness = clip, sharpness
        self.label_ND = clip.encode_text([template.replace("{}", text) for text in own])
        with warnings.catch_warnings():  # a CLIP with few tokens cuts words of the background
            warnings.simplefilter("ignore", ClipguideWarning)
            word_WD = clip.encode_text([template.replace("{}", word) for word in words])
        kept_W = unlike_each(word_WD, self.label_ND, words, own).all(0)
        if not kept_W.any():
            raise UsageError("The labels leave no word of the background to compare with.")
        self.background = tuple(words[w] for w in kept_W.nonzero()[:, 0].tolist())
        self.background_WD = word_WD[kept_W]
        known = None if background else shipped(clip.fingerprint, template, len(texts))
        self.threshold = 0.0 if known is None else known
        self.calibrated = known is not None

    def score(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return score_B, which is higher if a label is shown."""
        scale = self.clip.logit_scale
        image_BD = image_BD.to(self.label_ND)
        return evidence(
            scale * self.clip.similarity(image_BD, self.label_ND),
            scale * self.clip.similarity(image_BD, self.background_WD),
            sharpness=self.sharpness,
        )

    def decide(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return none_B: whether each image shows none of the labels. Warn if not calibrated."""
        if not self.calibrated:
            warnings.warn(
                f"None of these is not calibrated for the CLIP {self.clip.name}: labels must be "
                "likelier than all other words together. Calibrate it with images that do show "
                "the labels (calibrate, --calibrate FOLDER).",
                ClipguideWarning,
                stacklevel=2,
            )
        return self.score(image_BD) < self.threshold

    def calibrate(self, inside_BD: torch.Tensor, *, false: float = FALSE) -> float:
        """Set the threshold from images that do show a label, and return it.

        At most the share `false` of such images is then rejected. From fewer than 1/false - 1
        images, the threshold is the lowest score, with a warning.

        Args:
            inside_BD: unit embeddings of images that show a label.
            false: the share, from 0 to 1.

        Source: split conformal prediction, the floor(false·(B+1))-th lowest score (Vovk et al.
        2005).
        """
        if not len(inside_BD) or not 0 < false < 1:
            raise UsageError(
                "To calibrate takes images that show the labels, and a share in (0, 1)."
            )
        place = math.floor(false * (len(inside_BD) + 1) + 1e-9)
        if place < 1:
            warnings.warn(
                f"{len(inside_BD)} images are few to calibrate by: {math.ceil(1 / false) - 1} "
                f"promise that at most {false:.0%} of images of the labels are turned away.",
                ClipguideWarning,
                stacklevel=2,
            )
        lowest_B = self.score(inside_BD).sort().values
        self.threshold, self.calibrated = float(lowest_B[max(place, 1) - 1]), True
        return self.threshold


def evidence(
    label_BN: torch.Tensor, background_BW: torch.Tensor, *, sharpness: float = SHARPNESS
) -> torch.Tensor:
    """Return score_B of logits: (logsumexp(k·labels) - logsumexp(k·background)) / k. For a large k
    it is the margin between the best label and the best word."""
    mine_B = (sharpness * label_BN).logsumexp(1)
    return (mine_B - (sharpness * background_BW).logsumexp(1)) / sharpness


def unlike_each(
    word_WD: torch.Tensor, label_ND: torch.Tensor, words: Sequence[str], labels: Sequence[str]
) -> torch.Tensor:
    """Return other_NW: whether a word has another meaning than a label. Neither is a part of the
    other, and their similarity is below that of the share KIN of all words to their nearest word.
    """
    nearest_W = (word_WD @ word_WD.T).fill_diagonal_(-1).max(1).values
    other_NW = label_ND @ word_WD.T <= nearest_W.quantile(KIN)
    bags = [bag_of(word) for word in words]
    for n, label in enumerate(labels):
        mine = bag_of(label)
        other = [not (bag <= mine or mine <= bag) for bag in bags]
        other_NW[n] &= torch.tensor(other, device=other_NW.device)
    return other_NW


def shipped(fingerprint: str, template: str, count: int) -> float | None:
    """Return the threshold that clipguide ships for a CLIP, a template and a number of labels, or
    None. It is interpolated in the logarithm of the number."""
    tables = json.loads((HERE / "none.json").read_text(encoding="utf-8"))
    table = tables.get(fingerprint, {}).get("thresholds")
    if not table or tables[fingerprint]["template"] != template:
        return None
    return interpolate({int(size): value for size, value in table.items()}, count)


def interpolate(table: dict[int, float], count: int) -> float:
    """Return the value of the table at `count`, linear in its logarithm. Outside the table, return
    that of the nearest end."""
    sizes = sorted(table)
    count = min(max(count, sizes[0]), sizes[-1])
    above = next(size for size in sizes if size >= count)
    below = max(size for size in sizes if size <= count)
    if above == below:
        return table[count]
    share = math.log(count / below) / math.log(above / below)
    return (1 - share) * table[below] + share * table[above]


def bag_of(text: str) -> frozenset[str]:
    """Return the words of a text, without articles and the plural's s."""
    words = text.lower().replace("-", " ").split()
    return frozenset(word.removesuffix("s") or word for word in words) - {"a", "an", "the"}
