"""Whether a collection has what a text asks for, or only what comes nearest.

A picture speaks for a text by the log probability of it among some 1,770 nouns, kin of the text
left out: a softmax of its cosines, in standard deviations of those with all nouns, so that CLIPs
whose cosines lie close together are treated as others. The collection speaks by its best picture.

What pictures say to their own names hardly depends on the rest of the collection, so that the
threshold hardly does: what it says to a noun in the middle, if that is asked for, moves it, as the
best of many pictures says more to anything. See `threshold`, and `benchmarks/search.py refusal` for
what it is worth.

Shapes: B pictures, N texts, W words, D the width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ..prompts import read_lines
from ..zero_shot.none import KIN, _bag, unlike_each
from ..zero_shot.templates import HERE

SHARPNESS = 4.0  # of the softmax; 3 and 5 are no better
CANDIDATES = 20  # pictures that may speak for a text: those of the highest cosines
LEAST, SHARE = -4.0, 0.4  # of `threshold`, so that 5 % of what drawings do show is refused


def words() -> list[str]:
    """The nouns that texts are compared with."""
    return read_lines(HERE / "background.txt", what="words", comments=True)


def evidence(
    cosine_BN: torch.Tensor, word_BW: torch.Tensor, other_NW: torch.Tensor
) -> torch.Tensor:
    """evidence_N, at most 0: the highest log probability that a picture gives a text, in one
    softmax with the words that mean something else, of cosines_BN and _BW."""
    mean_B1, std_B1 = word_BW.mean(1, keepdim=True), word_BW.std(1, keepdim=True).clamp(min=1e-6)
    text_BN, word_BW = (SHARPNESS * (c - mean_B1) / std_B1 for c in (cosine_BN, word_BW))
    most_B1 = word_BW.amax(1, keepdim=True)
    sum_BN = (word_BW - most_B1).exp() @ other_NW.to(word_BW).T
    rivals_BN = most_B1 + sum_BN.clamp(min=1e-30).log()
    return -torch.nn.functional.softplus(rivals_BN - text_BN).amin(0)


def kin(word_WD: torch.Tensor) -> float:
    """The cosine above which a text means what a word means: as `zero_shot.none.unlike_each`."""
    return float((word_WD @ word_WD.T).fill_diagonal_(-1).max(1).values.quantile(KIN))


def of_text(
    text: str, text_D: torch.Tensor, unit_BD: torch.Tensor, word_WD: torch.Tensor, kin: float
) -> float:
    """The evidence for one text of its candidates unit_BD."""
    mine = _bag(text)
    apart_W = torch.tensor([not (bag <= mine or mine <= bag) for bag in map(_bag, words())])
    other_1W = ((word_WD @ text_D <= kin) & apart_W)[None]
    if not other_1W.any():
        other_1W[:] = True
    return float(evidence((unit_BD @ text_D)[:, None], unit_BD @ word_WD.T, other_1W)[0])


def calibrate(chunks: Iterable[torch.Tensor], word_WD: torch.Tensor) -> float:
    """The evidence for the word in the middle, of a collection in chunks unit_BD; -inf of none."""
    names = words()
    other_WW = unlike_each(word_WD, word_WD, names, names)
    best_W = torch.full((len(word_WD),), -math.inf)
    for unit_BD in chunks:
        cosine_BW = unit_BD @ word_WD.T
        best_W = torch.maximum(best_W, evidence(cosine_BW, cosine_BW, other_WW))
    return float(best_W.median())


def threshold(usual: float) -> float:
    """The evidence below which a text is refused, where `usual` is what `calibrate` found."""
    return LEAST + SHARE * usual
