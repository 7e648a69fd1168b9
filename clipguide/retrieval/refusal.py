"""Whether a collection has what a text asks for, or only what comes nearest.

A picture speaks for a text by how far its cosine with it is above the mean of those with the five
best of some 590 other nouns, kin of the text left out; the collection by its best picture. What
that is worth depends on the collection: the more pictures, the better its best one for anything at
all. So the same is computed, when it is indexed, for each of those nouns as if it were asked for,
and the threshold is a quantile of these, a lower one the more pictures there are, for the more of
the nouns it then does show: see `threshold`, and `benchmarks/search.py refusal` for what it is
worth.

Shapes: B candidates, K of them a text, N texts, W words, D the width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from ..prompts import read_lines
from ..zero_shot.none import unlike_each
from ..zero_shot.templates import HERE

RIVALS = 5  # words that a picture's cosine is compared with
CANDIDATES = 20  # pictures that may speak for a text: those of the highest cosines
STEP = 3  # every third of the background's nouns: more are slow to encode, and no better
LEAST, MORE = 0.12, 1.3  # of `threshold`, so that mini refuses 5 % of what drawings do show


def words() -> list[str]:
    """The nouns that texts are compared with."""
    return read_lines(HERE / "background.txt", what="words", comments=True)[::STEP]


def evidence(
    cosine_BN: torch.Tensor, word_BW: torch.Tensor, other_NW: torch.Tensor
) -> torch.Tensor:
    """evidence_N: the most that a candidate's cosine with a text is above the mean of its five best
    with words that mean something else."""
    rival_BNW = word_BW[:, None].masked_fill(~other_NW, -2.0)
    rivals = min(RIVALS, rival_BNW.shape[-1])
    return (cosine_BN - rival_BNW.topk(rivals).values.mean(-1)).max(0).values


def of_text(text: str, text_D: torch.Tensor, unit_BD: torch.Tensor, word_WD: torch.Tensor) -> float:
    """The evidence for one text of its candidates unit_BD."""
    other_1W = unlike_each(word_WD, text_D[None], words(), [text])
    if not other_1W.any():
        other_1W[:] = True
    return float(evidence((unit_BD @ text_D)[:, None], unit_BD @ word_WD.T, other_1W)[0])


def calibrate(chunks: Iterable[torch.Tensor], word_WD: torch.Tensor) -> list[float]:
    """The evidence for every word, sorted, of a collection in chunks unit_BD."""
    names = words()
    best_KW = torch.empty(0, len(word_WD))
    best_KWD = torch.empty(0, *word_WD.shape)
    for unit_BD in chunks:
        old = len(best_KW)
        cosine_BW = torch.cat([best_KW, unit_BD @ word_WD.T])
        best_KW, place_KW = cosine_BW.topk(min(CANDIDATES, len(cosine_BW)), dim=0)
        new_KWD = unit_BD[(place_KW - old).clamp(min=0)]
        if old:
            index_KWD = place_KW.clamp(max=old - 1)[..., None].expand_as(new_KWD)
            is_old_KW1 = (place_KW < old)[..., None]
            new_KWD = torch.where(is_old_KW1, best_KWD.gather(0, index_KWD), new_KWD)
        best_KWD = new_KWD
    other_WW = unlike_each(word_WD, word_WD, names, names)
    found = []
    for w in range(len(word_WD)):  # one at a time: all at once would be much memory
        rival_KW = best_KWD[:, w] @ word_WD.T
        found.append(float(evidence(best_KW[:, w, None], rival_KW, other_WW[w, None])[0]))
    return sorted(found)


def threshold(evidence: Sequence[float], count: int) -> float:
    """The evidence below which a text is refused, from what `calibrate` found in `count` pictures:
    their quantile of 0.12 + 1.3 / √count, at most the median."""
    if not evidence or not count:
        return -2.0
    share = min(0.5, LEAST + MORE / math.sqrt(count))
    return float(torch.tensor(evidence, dtype=torch.float64).quantile(share))
