"""Measure zero-shot classification by the three CLIPs: drawings, colours, synonyms, languages.

Legend: B images, K concepts, D the width of an embedding, 11 colours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import torch
from clipguide.pipelines.generation import CUTOUTS
from PIL import Image

from clipguide import Clip, images
from clipguide.errors import ClipguideError
from clipguide.objectives import spherical
from clipguide.objectives.features import Encoder
from clipguide.views import Cutouts
from training.data.colours import TERMS, dominant_colour
from training.data.compose import ON_DISC
from training.evaluate.drawings import Drawings, ranks, ranks_of_scores, share_of_pairs
from training.evaluate.ledger import CLIPS, HERE, Figure, Settings, figure
from training.samples import foreign_names

SYNONYMS = HERE / "synonyms.json"
CLEAR = 0.5  # a drawing has a colour if so much of it has, as in training


@cache
def all_drawings() -> Drawings:
    """Return the drawings. They are read once."""
    return Drawings()


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure held-out drawings and the two held-out styles, among the names of all concepts."""
    drawings = all_drawings()
    for name in CLIPS:
        clip, weights = settings.clip(name), settings.weights(name)
        text_KD = clip.encode_text(drawings.concepts)
        for what, found in drawings.tests().items():
            found = settings.cut(found)
            rank_B = ranks(drawings.encode(clip, found), text_KD, drawings.targets(found))
            for top in (1, 5):
                value, pairs = share_of_pairs(rank_B < top, found)
                yield figure(f"{name}: {what}, top-{top}", value, n=pairs, weights=weights,
                             note=f"{len(found)} drawings, among {len(text_KD)} concepts")


def together(settings: Settings) -> Iterator[Figure]:
    """Measure the same test sets by the sum of guide and judge with which `best-of` selects among
    samples that nothing steered. It sees more of an image than `measure` does: the guide's part of
    it is a mean over views."""
    drawings = all_drawings()
    guide, judge = settings.clip("guide"), settings.clip("judge")
    text_KD, judge_KD = (clip.encode_text(drawings.concepts) for clip in (guide, judge))
    for what, found in drawings.tests().items():
        found = settings.cut(found)
        score_BK = drawings.encode(judge, found) @ judge_KD.T
        score_BK += torch.cat(
            [by_views(guide, drawings.picture(drawing.index), text_KD) for drawing in found]
        )
        rank_B = ranks_of_scores(score_BK, drawings.targets(found))
        for top in (1, 5):
            value, pairs = share_of_pairs(rank_B < top, found)
            yield figure(f"judge: {what}, with the guide, top-{top}", value, n=pairs,
                         weights=settings.weights("guide", "judge"),
                         note=f"{len(found)} drawings, among {len(text_KD)} concepts")


@torch.no_grad()
def by_views(guide: Clip, picture: Image.Image, text_KD: torch.Tensor) -> torch.Tensor:
    """Return score_1K of an image by the guide, with the sign and the views of `ranks` of
    `clipguide.guidance.observers`."""
    unit_1ND = Encoder(guide, Cutouts(number=CUTOUTS), None)(images.to_tensor([picture]))
    return -spherical(unit_1ND[:, :, None], text_KD).mean(1)


def colours(settings: Settings) -> Iterator[Figure]:
    """Measure how often the right one of "a {colour} {concept}" is the best of the 11 colours, for
    drawings with a clear colour."""
    drawings = all_drawings()
    found, colour = [], []
    for drawing in drawings.held_out:
        term, share = dominant_colour(drawings.rgba[drawing.index])
        if share >= CLEAR and drawing.set not in ON_DISC:
            found.append(drawing)
            colour.append(TERMS.index(term))
    found, colour_B = settings.cut(found), torch.tensor(settings.cut(colour))
    for name in CLIPS:
        clip = settings.clip(name)
        image_BD = drawings.encode(clip, found)
        hit_B = colour_hits(clip, image_BD, [d.concept for d in found], colour_B)
        value, pairs = share_of_pairs(hit_B, found)
        yield figure(f"{name}: colour of held-out drawings", value, n=pairs,
                     weights=settings.weights(name),
                     note=f"{len(found)} drawings whose one colour covers half")


def colour_hits(clip: Clip, image_BD: torch.Tensor, things: list[str],
                colour_B: torch.Tensor) -> torch.Tensor:
    """Return whether the best of the 11 texts "a {colour} {thing}" has the colour of TERMS."""
    texts = {thing: clip.encode_text([f"a {term} {thing}" for term in TERMS])
             for thing in dict.fromkeys(things)}
    text_B11D = torch.stack([texts[thing] for thing in things])
    return (text_B11D @ image_BD[..., None])[..., 0].argmax(1) == colour_B


def synonyms(settings: Settings) -> Iterator[Figure]:
    """Measure drawings of a concept among all names, with its own name replaced by a word that is
    in no training caption."""
    drawings = all_drawings()
    words = dict(settings.cut(list(json.loads(SYNONYMS.read_text(encoding="utf-8")).items())))
    met = {name for row in drawings.rows for name in (row["concept"], *row["names"])}
    if known := met & set(words):
        raise ClipguideError(f"Not synonyms without a picture: {', '.join(sorted(known))}.")
    tests: dict[str, list] = {concept: [] for concept in words.values()}
    for found in drawings.tests().values():
        for drawing in found:
            if drawing.concept in tests:
                tests[drawing.concept].append(drawing)
    for name in CLIPS:
        clip, hits, pictures = settings.clip(name), [], 0
        text_KD, word_SD = clip.encode_text(drawings.concepts), clip.encode_text(list(words))
        image_BD = {c: drawings.encode(clip, found) for c, found in tests.items() if found}
        for word_D, concept in zip(word_SD, words.values()):
            if concept in image_BD:
                target_B = drawings.targets(tests[concept])
                replaced_KD = text_KD.index_copy(0, target_B[:1], word_D[None])
                rank_B = ranks(image_BD[concept], replaced_KD, target_B)
                hits.append((rank_B < 5).float().mean().item())
                pictures += len(rank_B)
        yield figure(f"{name}: synonyms, top-5", sum(hits) / len(hits), n=len(hits),
                     weights=settings.weights(name),
                     note=f"{pictures} drawings, each word's share weighs the same")


def languages(settings: Settings) -> Iterator[Figure]:
    """Measure names of objects in other languages, by text alone: the English concept among all.
    The text encoders of guide and judge were trained on these names, but not together with images.
    """
    drawings, foreign = all_drawings(), foreign_names()
    emoji = {row["emoji"]: row["concept"] for row in drawings.rows
             if row.get("emoji") and row["concept"] in drawings.place}
    said: dict[str, list[tuple[str, str]]] = {}
    for symbol, concept in sorted(emoji.items()):
        for language, names in foreign.get(symbol, {}).items():
            said.setdefault(language, []).append((names[0], concept))
    for name in CLIPS:
        clip = settings.clip(name)
        text_KD, shares = clip.encode_text(drawings.concepts), {}
        for language, rows in said.items():
            rows = settings.cut(rows)
            target_B = torch.tensor([drawings.place[concept] for _, concept in rows])
            rank_B = ranks(clip.encode_text([text for text, _ in rows]), text_KD, target_B)
            shares[language] = (rank_B < 5).float().mean().item()
        worst = min(shares, key=shares.get)
        yield figure(f"{name}: other languages, top-5", sum(shares.values()) / len(shares),
                     n=sum(len(settings.cut(rows)) for rows in said.values()),
                     weights=settings.weights(name),
                     note=f"{len(shares)} languages; least {worst}, {shares[worst]:.2f}")
