"""Measure what the gradient of a CLIP draws: concepts on a Fourier canvas, by one guide alone.

The plain and the robust guide each get their own best learning rate, number of views and total
variation from the same search. There the judge selects, on concepts that are not measured. The
referee measures. `clipguide.finetune.figure` draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clipguide.finetune.figure import Hand, choose, guide_figure
from training.evaluate.clips import all_drawings
from training.evaluate.ledger import Figure, Settings, figure

CONCEPTS = 100
SEARCHED = 8


def chosen_concepts(things: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (concepts to measure, concepts for the search): a fixed random choice of objects with
    names of one word."""
    words = [thing for thing in things if thing.isalpha()]
    order = np.random.default_rng(0).permutation(len(words))
    picked = [words[i] for i in order[:CONCEPTS + SEARCHED]]
    return picked[:CONCEPTS], picked[CONCEPTS:]


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure how often the referee has the concept in the top 5 of all: for the guide, then for
    the plain one."""
    drawings = all_drawings()
    concepts, searched = chosen_concepts(drawings.things())
    concepts, searched = settings.cut(concepts), settings.cut(searched)
    judge, referee = settings.clip("judge"), settings.clip("referee")
    shares = {}
    for name in ("guide", "guide-plain"):
        clip = settings.clip(name)
        print(f"{name}: searching on {len(searched)} concepts", flush=True)
        hand = choose(clip, judge, searched, Hand(steps=max(1, settings.steps // 2)),
                      on_score=_told)
        hand = Hand(lr=hand.lr, crops=hand.crops, smooth=hand.smooth, steps=settings.steps)
        drawn = guide_figure(clip, referee, concepts, among=drawings.concepts, hand=hand)
        drawn.sheet().save(settings.out / f"gradients-{name}.png")
        shares[name] = drawn.share
        yield figure(f"{name}: drawn by its gradient, referee's top-5", drawn.share,
                     n=len(concepts), weights=settings.weights(name, "referee"),
                     note=f"{hand.steps} steps, lr {hand.lr}, {hand.crops} crops, "
                          f"total variation {hand.smooth}, among {drawn.among} concepts")
    floor = 1 / len(concepts)
    yield figure("guide: drawn by its gradient, times the plain guide's",
                 shares["guide"] / max(shares["guide-plain"], floor), n=len(concepts),
                 weights=settings.weights("guide", "guide-plain", "referee"),
                 note="" if shares["guide-plain"] else "the plain guide's none counts as one")


def _told(hand: Hand, score: float) -> None:
    print(f"  {hand}: the judge's cosine {score:.3f}", flush=True)
