"""How a score compares with what unrelated texts find in the same collection.

The distribution is the collection's own: for each of some 1,770 nouns the cosine of the image that
fits it best. A score is better than the share of these that are lower, nouns that mean what the
text means left out. What is in a collection is usually better than nearly all of them, and what is
absent lies among them; but no threshold tells the two apart well enough to refuse a query
(benchmarks/README.md), so that the share is shown, and nothing is refused.

Shapes: B images, W nouns, D the width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ..prompts import read_lines
from ..zero_shot.none import KIN, bag_of
from ..zero_shot.templates import HERE


def words() -> list[str]:
    """The nouns."""
    return read_lines(HERE / "background.txt", what="words", comments=True)


def best(chunks: Iterable[torch.Tensor], word_WD: torch.Tensor) -> torch.Tensor:
    """best_W: the highest cosine of each noun with a collection in chunks unit_BD; -inf of none."""
    best_W = torch.full((len(word_WD),), -math.inf)
    for unit_BD in chunks:
        best_W = torch.maximum(best_W, (unit_BD @ word_WD.T).amax(0))
    return best_W


def kin(word_WD: torch.Tensor) -> float:
    """The cosine above which a text means what a noun means: as `zero_shot.none.unlike_each`."""
    return float((word_WD @ word_WD.T).fill_diagonal_(-1).max(1).values.quantile(KIN))


def apart(text: str, text_D: torch.Tensor, word_WD: torch.Tensor, kin: float) -> torch.Tensor:
    """apart_W: whether each noun means something else than the text, by its vector and its words;
    all of them where none does."""
    mine = bag_of(text)
    apart_W = torch.tensor([not (bag <= mine or mine <= bag) for bag in map(bag_of, words())])
    apart_W &= word_WD @ text_D <= kin
    return apart_W if apart_W.any() else torch.ones_like(apart_W)


def share_below(score: float, best_W: torch.Tensor, apart_W: torch.Tensor) -> float:
    """The share of unrelated nouns whose best image scores less, in [0, 1]."""
    return float((best_W[apart_W] < score).double().mean())
