"""Measure a guide: draw concepts by a CLIP's gradient, and test whether a judge recognises them.

One CLIP alone draws each concept on a Fourier canvas, without a generator. A judge, another CLIP,
then ranks the concept among all texts. The gradient of an ordinary CLIP draws noise that only this
CLIP recognises. `guide_report` compares a CLIP before and after training, and reports its clean
accuracy.

Legend: B images, 3 channels, H rows, W columns, K texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from ..canvases import Fourier
from ..clip import Clip
from ..errors import ClipguideError, UsageError
from ..images import contact_sheet, to_pil
from ..objectives import Similarity, TotalVariation
from ..prompts import Part, Prompt, shorten
from ..views import Cutouts

TOP = 5  # the concept must be among this many first answers of the judge
CHUNK = 10  # concepts that are drawn at a time


@dataclass(frozen=True, kw_only=True)
class Hand:
    """The settings with which a guide draws: Adam's learning rate, crops besides the whole image,
    weight of the total variation, steps, and pixels per side."""

    lr: float = 0.05
    crops: int = 1
    smooth: float = 0.0
    steps: int = 60
    size: int = 128


HANDS = {"lr": (0.02, 0.05, 0.12), "smooth": (0.0, 2.0), "crops": (1, 3)}


def draw(clip: Clip, concepts: Sequence[str], hand: Hand = Hand()) -> torch.Tensor:
    """Return pictures_B3HW of the concepts. Each minimises its own loss: Adam treats images
    separately."""
    return torch.cat(
        [_draw(clip, concepts[k : k + CHUNK], hand) for k in range(0, len(concepts), CHUNK)]
    )


def _draw(clip: Clip, concepts: Sequence[str], hand: Hand) -> torch.Tensor:
    prompts = [Prompt((Part(concept),)) for concept in concepts]
    objective = Similarity(clip, prompts, views=Cutouts(number=hand.crops))
    if hand.smooth:
        objective = objective + hand.smooth * TotalVariation()
    generators = [torch.Generator().manual_seed(0) for _ in concepts]
    canvas = Fourier(hand.size, hand.size, generators)
    optimizer = torch.optim.Adam(canvas.parameters(), lr=hand.lr)
    for _ in range(hand.steps):
        optimizer.zero_grad()
        objective(canvas.decode(), generators).sum().backward()
        optimizer.step()
    return canvas.decode().detach()


def choose(
    clip: Clip,
    judge: Clip,
    concepts: Sequence[str],
    hand: Hand = Hand(),
    *,
    on_score: Callable[[Hand, float], None] = lambda hand, score: None,
) -> Hand:
    """Return the entry of HANDS whose images of these concepts the judge scores highest. Measure it
    later on other concepts, and with another judge."""
    text_BD = judge.encode_text(list(concepts))
    scores: dict[Hand, float] = {}

    def score(hand: Hand) -> float:
        if hand not in scores:
            image_BD = judge.encode_image(draw(clip, concepts, hand))
            scores[hand] = (image_BD * text_BD).sum(-1).mean().item()
            on_score(hand, scores[hand])
        return scores[hand]

    best = hand
    for name, values in HANDS.items():
        best = max((replace(best, **{name: value}) for value in values), key=score)
    return best


@dataclass(frozen=True)
class GuideFigure:
    """The images that a guide drew of the concepts, and rank_B of each among the texts; 0 is the
    first."""

    concepts: tuple[str, ...]
    rank_B: torch.Tensor
    pictures: tuple[Image.Image, ...]
    hand: Hand
    among: int

    @property
    def share(self) -> float:
        """Return how often the concept is among the judge's first five answers."""
        return (self.rank_B < TOP).float().mean().item()

    def sheet(self, columns: int = 10) -> Image.Image:
        """Return a sheet of the images, each with its concept and the judge's rank, from 1."""
        labels = [f"{c} ({r + 1})" for c, r in zip(self.concepts, self.rank_B.tolist())]
        return contact_sheet(self.pictures, labels=labels, columns=columns)


def guide_figure(
    clip: Clip,
    judge: Clip,
    concepts: Sequence[str],
    *,
    among: Sequence[str] = (),
    hand: Hand = Hand(),
) -> GuideFigure:
    """Draw the concepts by the CLIP alone, and rank them with the judge among the texts in `among`
    and the concepts. With mini, 24 concepts take a minute.

    Raises:
        UsageError: there are fewer texts than the judge may name.
    """
    if not concepts:
        raise UsageError("There is nothing to draw: give concepts.")
    texts = list(dict.fromkeys([*among, *concepts]))
    if len(texts) <= TOP:
        raise UsageError(
            f"A judge that names {TOP} of {len(texts)} texts is always right: give more of them."
        )
    pictures = to_pil(draw(clip, concepts, hand))
    place = {text: k for k, text in enumerate(texts)}
    target_B = torch.tensor([place[concept] for concept in concepts])
    rank_B = ranks(judge.encode_pictures(pictures), judge.encode_text(texts), target_B)
    return GuideFigure(tuple(concepts), rank_B, tuple(pictures), hand, len(texts))


def ranks(image_BD: torch.Tensor, text_KD: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Return how many other texts score at least as high as the right one: 0 is the first place,
    and ties count against it.

    Raises:
        ClipguideError: a score is not a number.
    """
    return ranks_of_scores((image_BD @ text_KD.T).cpu(), target_B)


def ranks_of_scores(score_BK: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Return the same of the scores of K texts.

    Raises:
        ClipguideError: a score is not a number.
    """
    if not torch.isfinite(score_BK).all():
        raise ClipguideError("A score is not a number: the weights are broken.")
    return (score_BK >= score_BK.gather(1, target_B[:, None])).sum(1) - 1


def clean_top1(
    clip: Clip, pictures: Iterable[Image.Image], labels: Sequence[int], classes: Sequence[str]
) -> float:
    """Return the top-1 accuracy on unchanged images."""
    rank_B = ranks(
        clip.encode_pictures(list(pictures)),
        clip.encode_text(list(classes)),
        torch.tensor(list(labels)),
    )
    return (rank_B < 1).float().mean().item()


@dataclass(frozen=True)
class GuideReport:
    """The figures of a guide before and after, and its clean accuracy if there are images for it.
    """

    before: GuideFigure
    after: GuideFigure
    clean: tuple[float, float] | None
    judge: str

    def rows(self) -> list[tuple[str, float, float]]:
        """Return (name, before, after) as shares."""
        drawn = f"drawn by its gradient, {self.judge}'s top-{TOP} of {self.after.among}"
        found = [(drawn, self.before.share, self.after.share)]
        return found + ([("clean top-1", *self.clean)] if self.clean else [])

    def markdown(self) -> str:
        """Return the rows as a table."""
        lines = ["| what | before | after |", "|---|---|---|"]
        lines += [f"| {what} | {100 * a:.1f} % | {100 * b:.1f} % |" for what, a, b in self.rows()]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """Write the contact sheets guide-before.png and guide-after.png. Return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"guide-{when}.png" for when in ("before", "after")]
        for file, figure in zip(files, (self.before, self.after)):
            figure.sheet().save(file)
        return files


def guide_report(
    before: Clip,
    after: Clip,
    judge: Clip,
    concepts: Sequence[str],
    *,
    among: Sequence[str] = (),
    hands: tuple[Hand, Hand] = (Hand(), Hand()),
    pictures: Sequence[Image.Image] = (),
    labels: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> GuideReport:
    """Compare two guides on the same concepts, each with its own settings. `pictures`, with their
    `labels` among `classes`, give the clean accuracy. Neither CLIP was trained on them.

    Raises:
        UsageError: the judge is one of the two CLIPs. A CLIP cannot judge itself.
    """
    if judge.fingerprint in (before.fingerprint, after.fingerprint):
        raise UsageError(
            f"The judge {shorten(judge.name)} is the CLIP that is judged: name another one."
        )
    clean = None
    if pictures:
        clean = tuple(clean_top1(c, pictures, labels, classes) for c in (before, after))
    figures = [
        guide_figure(clip, judge, concepts, among=among, hand=hand)
        for clip, hand in zip((before, after), hands)
    ]
    name = Path(judge.name).name if Path(judge.name).is_dir() else judge.name
    return GuideReport(*figures, clean, name)
