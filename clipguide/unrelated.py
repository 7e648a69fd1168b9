"""What a cosine means: how it compares with the cosines of unrelated texts.

A cosine of 0.25 is high for one CLIP and low for another. So the texts of some 1,770 nouns are
scored too, without those that mean what the text means. The share of the nouns with a lower score
has the same meaning for every CLIP, and `sure` puts it into words.

- For one image (`Unrelated`), the scores are the cosines of this image with the nouns.
- For a search, they are the collection's own: for each noun, the cosine of the image that fits it
  best. What is in a collection usually scores higher than nearly all nouns, and what is absent lies
  among them. No threshold tells the two apart well enough to refuse a query (benchmarks/README.md).
  So the share is shown, and nothing is refused.

Shapes: B images, W nouns, D the width of the embedding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import cache, cached_property

import torch

from .clip import Clip
from .errors import ClipguideWarning
from .prompts import read_lines
from .zero_shot.none import KIN, bag_of
from .zero_shot.templates import HERE

EVERY = 7  # for one image, one in this many nouns is enough: the share is exact to half a percent
WORDS = (  # smallest share -> word. benchmarks/sureness.py measures how often each is right
    (0.99, "very sure"),
    (0.95, "sure"),
    (0.75, "unsure"),
    (0.0, "no match"),
)


_ENCODED: dict[tuple[str, str, str], torch.Tensor] = {}


def words() -> list[str]:
    """Return the nouns."""
    return list(_words())


@cache
def _words() -> tuple[str, ...]:
    return tuple(read_lines(HERE / "background.txt", what="words", comments=True))


def sure(share: float) -> str:
    """Return the word for a share of unrelated texts that score lower: "very sure" and so on.

    Args:
        share: from 0 to 1.
    """
    return next(word for least, word in WORDS if share >= least)


class Unrelated:
    """The scores of unrelated texts by a CLIP. Their embeddings are computed at the first use.

    Args:
        clip: the CLIP that made the scores.
        template: what each noun is put into, as in "a photo of a {}".
    """

    def __init__(self, clip: Clip, *, template: str = "{}") -> None:
        self.clip = clip
        self.template = template
        self._nouns = words()[::EVERY]
        self._apart: dict[str, torch.Tensor] = {}

    @cached_property
    def word_WD(self) -> torch.Tensor:
        """Return the unit embeddings of the nouns, in float32 on the CPU.

        They are kept as long as the process lives, for CLIPs of the same fingerprint.
        """
        key = self.clip.fingerprint, str(getattr(self.clip, "dtype", "")), self.template
        if key not in _ENCODED:
            texts = [self.template.replace("{}", noun) for noun in self._nouns]
            with warnings.catch_warnings():  # a CLIP with few tokens cuts words
                warnings.simplefilter("ignore", ClipguideWarning)
                _ENCODED[key] = self.clip.encode_text(texts).float().cpu()
        return _ENCODED[key]

    def shares(self, image_BD: torch.Tensor, text: str, score_B: torch.Tensor) -> list[float]:
        """Return the share of the nouns that score lower, for each image, from 0 to 1.

        Args:
            image_BD: unit embeddings of images.
            text: the text that was scored. Nouns that mean the same are left out.
            score_B: its cosine similarities with the images.
        """
        image_BD = image_BD.float().cpu()
        null_BW = image_BD @ self.word_WD[self._unlike(text)].T
        return (null_BW < score_B.float().cpu()[:, None]).double().mean(1).tolist()

    def _unlike(self, text: str) -> torch.Tensor:
        if text not in self._apart:
            text_D = self.clip.encode_text([text], long="chunk")[0].float().cpu()
            self._apart[text] = apart(text, text_D, self.word_WD, self._kin, self._nouns)
        return self._apart[text]

    @cached_property
    def _kin(self) -> float:
        return kin(self.word_WD)


def best(chunks: Iterable[torch.Tensor], word_WD: torch.Tensor) -> torch.Tensor:
    """Return best_W, the highest cosine of each noun with a collection in chunks unit_BD.

    It is -inf if the collection is empty.
    """
    best_W = torch.full((len(word_WD),), -math.inf)
    for unit_BD in chunks:
        best_W = torch.maximum(best_W, (unit_BD @ word_WD.T).amax(0))
    return best_W


def kin(word_WD: torch.Tensor) -> float:
    """Return the cosine above which a text means what a noun means, as in `NoneOfThese`."""
    return float((word_WD @ word_WD.T).fill_diagonal_(-1).max(1).values.quantile(KIN))


def apart(
    text: str,
    text_D: torch.Tensor,
    word_WD: torch.Tensor,
    kin: float,
    nouns: Sequence[str] | None = None,
) -> torch.Tensor:
    """Return apart_W: whether each noun differs in meaning from the text, by its embedding and its
    words. If none does, return all. `nouns` are those of word_WD, by default all."""
    mine = bag_of(text)
    bags = map(bag_of, words() if nouns is None else nouns)
    apart_W = torch.tensor([not (bag <= mine or mine <= bag) for bag in bags])
    apart_W &= word_WD @ text_D <= kin
    return apart_W if apart_W.any() else torch.ones_like(apart_W)


def share_below(score: float, best_W: torch.Tensor, apart_W: torch.Tensor) -> float:
    """Return the share of unrelated nouns whose best image scores lower, from 0 to 1."""
    return float((best_W[apart_W] < score).double().mean())
