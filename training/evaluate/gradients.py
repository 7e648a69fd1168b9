"""What a CLIP's gradient draws: concepts on a Fourier canvas, under one guide alone.

The plain and the robust guide each get their own
best learning rate, number of views and total variation from the same search; the judge chooses
there, on concepts that are not measured, and the referee measures.

Legend: B pictures, 3 channels, H rows, W columns, K concepts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clipguide import Clip, Cutouts, Similarity, TotalVariation
from clipguide.canvases import Fourier
from clipguide.images import contact_sheet, to_pil
from clipguide.prompts import Part, Prompt
from training.evaluate.clips import all_drawings
from training.evaluate.drawings import ranks
from training.evaluate.ledger import Figure, Settings, figure

SIZE = 128
BATCH = 10
CONCEPTS = 100
SEARCHED = 8


@dataclass(frozen=True)
class Choice:
    """How a guide draws: Adam's rate, crops beside the whole, weight of total variation."""

    lr: float = 0.05
    crops: int = 1
    smooth: float = 0.0


SEARCH = {"lr": (0.02, 0.05, 0.12), "smooth": (0.0, 2.0), "crops": (1, 3)}


def draw(clip: Clip, concepts: Sequence[str], choice: Choice, steps: int) -> torch.Tensor:
    """Pictures_B3HW of the concepts, each descending its own loss: Adam knows no neighbours."""
    prompts = [Prompt((Part(concept, 1.0),)) for concept in concepts]
    objective = Similarity(clip, prompts, views=Cutouts(number=choice.crops))
    if choice.smooth:
        objective = objective + choice.smooth * TotalVariation()
    generators = [torch.Generator().manual_seed(0) for _ in concepts]
    canvas = Fourier(SIZE, SIZE, generators)
    optimizer = torch.optim.Adam(canvas.parameters(), lr=choice.lr)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(canvas.decode(), generators).sum().backward()
        optimizer.step()
    return canvas.decode().detach()


def draw_all(clip: Clip, concepts: Sequence[str], choice: Choice, steps: int) -> torch.Tensor:
    """The same, a batch at a time."""
    return torch.cat([draw(clip, concepts[k:k + BATCH], choice, steps)
                      for k in range(0, len(concepts), BATCH)])


def search(clip: Clip, judge: Clip, concepts: Sequence[str], steps: int) -> Choice:
    """The choice whose pictures the judge likes best, one setting after the other."""
    text_BD = judge.encode_text(list(concepts))
    scores: dict[Choice, float] = {}

    def score(choice: Choice) -> float:
        if choice not in scores:
            image_BD = judge.encode_image(draw_all(clip, concepts, choice, steps))
            scores[choice] = (image_BD * text_BD).sum(-1).mean().item()
            print(f"  {choice}: the judge's cosine {scores[choice]:.3f}", flush=True)
        return scores[choice]

    best = Choice()
    for name, values in SEARCH.items():
        best = max((replace(best, **{name: value}) for value in values), key=score)
    return best


def chosen_concepts(things: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those measured, those searched on): a fixed draw from things with names of one word."""
    words = [thing for thing in things if thing.isalpha()]
    order = np.random.default_rng(0).permutation(len(words))
    picked = [words[i] for i in order[:CONCEPTS + SEARCHED]]
    return picked[:CONCEPTS], picked[CONCEPTS:]


def measure(settings: Settings) -> Iterator[Figure]:
    """How often the referee has the concept in the top 5 of all: the guide, then the plain one."""
    drawings = all_drawings()
    concepts, searched = chosen_concepts(drawings.things())
    concepts, searched = settings.cut(concepts), settings.cut(searched)
    judge, referee = settings.clip("judge"), settings.clip("referee")
    text_KD = referee.encode_text(drawings.concepts)
    target_B = torch.tensor([drawings.place[concept] for concept in concepts])
    shares = {}
    for name in ("guide", "guide-plain"):
        clip = settings.clip(name)
        print(f"{name}: searching on {len(searched)} concepts", flush=True)
        choice = search(clip, judge, searched, max(1, settings.steps // 2))
        pictures = to_pil(draw_all(clip, concepts, choice, settings.steps))
        rank_B = ranks(referee.encode_pictures(pictures), text_KD, target_B)
        labels = [f"{concept} ({rank + 1})" for concept, rank in zip(concepts, rank_B.tolist())]
        contact_sheet(pictures, labels=labels, columns=10).save(
            settings.out / f"gradients-{name}.png")
        shares[name] = (rank_B < 5).float().mean().item()
        yield figure(f"{name}: drawn by its gradient, referee's top-5", shares[name],
                     n=len(concepts), weights=settings.weights(name, "referee"),
                     note=f"{settings.steps} steps, lr {choice.lr}, {choice.crops} crops, "
                          f"total variation {choice.smooth}, among {len(text_KD)} concepts")
    floor = 1 / len(concepts)
    yield figure("guide: drawn by its gradient, times the plain guide's",
                 shares["guide"] / max(shares["guide-plain"], floor), n=len(concepts),
                 weights=settings.weights("guide", "guide-plain", "referee"),
                 note="" if shares["guide-plain"] else "the plain guide's none counts as one")
