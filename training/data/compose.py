"""Training samples: drawings placed, recoloured, paired and counted, with true captions.

Every visit makes a new image and a new caption. The samples never contain what
`training/holdout.json` lists: the test styles, 400 concept x family pairs, and 100 colour x thing
pairs (in words and in pixels). They contain no word of `training/synonyms.json` either.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.data.captions import (
    Grammar,
    Noun,
    banned_words,
    colour_words,
    nouns_of,
    usable_names,
)
from training.data.colours import TERMS, prototypes, term_indices
from training.data.emoji import clean
from training.data.pixels import at_size, hidden, place, shares
from training.data.recolour import recoloured
from training.data.restyle import flat, inked, lost, outlined

TRAINING = Path(__file__).parents[1]
# A caption says a colour of a drawing only if this share of the opaque pixels has the colour.
SAID_SHARE = 0.5
# A name such as "red apple" needs this share of red among the opaque pixels.
NAMED_SHARE = 0.15
# These sets show things on a coloured disc. The caption says no colour of such a thing.
ON_DISC = ("streamline-kameleon-color", "flat-ui")
REPAINT = ("animals & nature", "food & drink", "travel & places", "objects", "activities")
PAINT = tuple(t for t in TERMS for _ in range(1 if t in ("black", "white", "grey") else 3))
SMALL, LARGE = 0.55, 0.95  # below SMALL and above LARGE, the caption may say the size


@dataclass(frozen=True)
class Mix:
    """Shares of what the samples show. `pairs` and `several` leave the rest to single things."""

    pairs: float = 0.14
    several: float = 0.12
    recolour: float = 0.35
    ground: float = 0.4
    full: float = 0.0  # share of the single things that fill the image
    restyle: float = 0.0  # share of the things in another style: outlined, flat, or in one ink
    symbols: float = 0.4  # share of the drawn symbols that are kept


@dataclass(frozen=True)
class Sample:
    """One image with its caption.

    `rgb` is uint8 (size, size, 3). `concepts` are the concepts in the image. `colour` is the true
    colour term of the thing that it shows. It is None if no term is true or if the image shows two
    kinds of things.
    """

    rgb: np.ndarray
    caption: str
    concepts: tuple[str, ...]
    colour: str | None


class TrainingSet:
    """The built data as an endless source of samples of `size` pixels."""

    def __init__(self, folder: Path, size: int = 128, mix: Mix = Mix(), *,
                 holdout: dict | None = None, synonyms: dict | None = None):
        """Read the data in `folder`, which `python -m training.data build` writes.

        `holdout` and `synonyms` default to the committed lists.
        """
        if holdout is None:
            holdout = json.loads((TRAINING / "holdout.json").read_text("utf-8"))
        if synonyms is None:
            synonyms = json.loads((TRAINING / "synonyms.json").read_text("utf-8"))
        self.size, self.mix = size, mix
        lines = (folder / "manifest.jsonl").read_text("utf-8").splitlines()
        self._all = [json.loads(line) for line in lines]
        self.rgba = at_size(folder, size)
        self.shares = shares(folder, self.rgba)
        self._held = {(p["concept"], p["family"]) for p in holdout["pairs"]}
        self._held_colours = held_colours(holdout["colours"])
        self.banned = banned_words([*synonyms])
        drawn = [r for r in self._all if r["split"] == "train"]
        self.forbidden = forbidden_colours(drawn, self._held_colours)
        self._held_things = banned_words([*self._held_colours])
        self.rows = [r for r in drawn if self._may_train(r)]
        self.concepts = sorted({r["concept"] for r in drawn})
        self.by_concept: dict[str, list[dict]] = {}
        for row in self.rows:
            self.by_concept.setdefault(row["concept"], []).append(row)
        self._names = list(self.by_concept)

    def _may_train(self, row: dict) -> bool:
        """Return whether training may show a drawing.

        It may not if the drawing is held out, or if its own colours make a held-out pair. A colour
        makes a pair from a share of 0.3.
        """
        if (row["concept"], row["family"]) in self._held:
            return False
        own = self.shares[row["index"]]
        return not any(own[TERMS.index(c)] >= 0.3
                       for c in self._held_colours.get(row["concept"], ()))

    # -- for evaluation ---------------------------------------------------------------------
    def plain_concepts(self) -> list[str]:
        """Return the concepts of the training drawings that are not symbols, sorted."""
        train = (r for r in self._all if r["split"] == "train")
        return sorted({r["concept"] for r in train if not r["symbol"]})

    @cached_property
    def places(self) -> dict[int, int]:
        """Return the place of each training drawing in colour, by its number in the manifest."""
        colours = (row["index"] for row in self.rows if not row["mono"])
        return {index: place for place, index in enumerate(colours)}

    def held_rows(self) -> list[dict]:
        """Return the drawings of the held-out concept x family pairs."""
        return [r for r in self._all
                if r["split"] == "train" and (r["concept"], r["family"]) in self._held]

    def style_rows(self, name: str) -> list[dict]:
        """Return the drawings of a test set whose concept is in `plain_concepts`.

        Leave out the drawings that are nearly a training image.
        """
        known = set(self.plain_concepts())
        return [r for r in self._all
                if r["set"] == name and r["concept"] in known and not r.get("near_train")]

    def on_white(self, indices: list[int]) -> torch.Tensor:
        """Return float32 (n, 3, size, size) in [0, 1]: the unchanged drawings on white."""
        rgba = self.rgba[np.asarray(indices)].astype(np.float32) / 255
        rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        return torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous()

    # -- for training -----------------------------------------------------------------------
    def row(self, rng: np.random.Generator) -> dict:
        """Draw a training drawing.

        Half of the time, all drawings are equally likely. Half of the time, all concepts are, so
        that rare concepts appear too. `Mix.symbols` is the share of symbols that stay.
        """
        while True:
            if rng.random() < 0.5:
                row = self.rows[int(rng.integers(len(self.rows)))]
            else:
                row = self.of_concept(self._names[int(rng.integers(len(self._names)))], rng)
            if not row["symbol"] or rng.random() < self.mix.symbols:
                return row

    def of_concept(self, concept: str, rng: np.random.Generator) -> dict:
        """Draw a training drawing of a concept."""
        rows = self.by_concept[concept]
        return rows[int(rng.integers(len(rows)))]

    def sample(self, rng: np.random.Generator, row: dict | None = None) -> Sample:
        """Draw a sample: a single thing, 2 things beside each other, or 2 to 4 of one thing.

        `row` is the drawing of the thing, or of the left one of 2. By default it is random. If the
        sample is not allowed or cannot be made, return a plain drawing on white.
        """
        row = row or self.row(rng)
        roll = rng.random()
        if roll < self.mix.pairs:
            sample = self.pair(row, self.row(rng), rng)
        elif roll < self.mix.pairs + self.mix.several:
            sample = self.several(row, rng)
        else:
            sample = self.placed(row, rng)
        return sample if sample and self.allowed(sample) else self.single(row["index"], rng)

    def allowed(self, sample: Sample) -> bool:
        """Return whether no colour word in the caption is held out for a thing in the image."""
        said = colour_words(sample.caption)
        return not any(said & self.forbidden.get(c, frozenset()) for c in sample.concepts)

    def single(self, index: int, rng: np.random.Generator, *, recolour: bool = False) -> Sample:
        """Draw a sample of one drawing on white, with a small random shift and scale.

        The drawing may be mirrored. The generator trains on these samples.
        """
        row = self._all[index]
        rgba, colour, painted = self.thing(row, rng, 1.0 if recolour else 0.0)
        canvas = Image.new("RGB", (self.size,) * 2, "white")
        place(canvas, rgba, rng.uniform(0.9, 1.04), *rng.uniform(0.35, 0.65, 2))
        caption = self.caption(index, rng, colour, painted)
        return Sample(np.asarray(canvas), caption, (row["concept"],), colour)

    def caption(self, index: int, rng: np.random.Generator, colour: str | None = None,
                painted: bool = False) -> str:
        """Draw a caption of a plain drawing.

        `colour` is its true colour term. `painted` is whether the drawing was recoloured.
        """
        row, grammar = self._all[index], Grammar(rng)
        noun = self.noun(row, grammar, painted)
        said = colour if painted or grammar.chance(0.5) else None
        if colour_words(noun.text) or said in self.forbidden.get(row["concept"], ()):
            said = None
        return grammar.one(noun, said, None, None, None, self.keywords(row, grammar))

    def placed(self, row: dict, rng: np.random.Generator) -> Sample:
        """Draw a sample of one thing, with a random size and place.

        The background is white or coloured. The thing may be rotated.
        """
        grammar = Grammar(rng)
        rgba, colour, painted = self.thing(row, rng, self.mix.recolour)
        canvas, ground = self.ground([row], [rgba], rng)
        scale = float(rng.uniform(0.85 if rng.random() < self.mix.full else 0.4, 1.1))
        x, y = rng.uniform(0, 1, 2)
        if rng.random() < 0.25 and not row["symbol"]:
            rgba = np.asarray(Image.fromarray(rgba).rotate(rng.uniform(-20, 20), Image.BILINEAR))
        place(canvas, rgba, scale, x, y)
        noun = self.noun(row, grammar, painted)
        said = colour if not colour_words(noun.text) and grammar.chance(0.75) else None
        size = "small" if scale < SMALL else "large" if scale > LARGE else None
        side = "left" if x < 0.25 else "right" if x > 0.75 else None
        side = side if scale < 0.6 and grammar.chance(0.4) and "ward" not in noun.text else None
        caption = grammar.one(noun, said, size if grammar.chance(0.3) else None,
                              ground if grammar.chance(0.7) else None, side,
                              self.keywords(row, grammar))
        return Sample(np.asarray(canvas), caption, (row["concept"],), colour)

    def pair(self, left: dict, right: dict, rng: np.random.Generator) -> Sample | None:
        """Draw a sample of 2 things beside each other. Return None if they share a concept."""
        if left["concept"] == right["concept"]:
            return None
        grammar, said = Grammar(rng), []
        things = [self.thing(r, rng, self.mix.recolour) for r in (left, right)]
        canvas, ground = self.ground([left, right], [rgba for rgba, _, _ in things], rng)
        for x, row, (rgba, colour, painted) in zip((0.0, 1.0), (left, right), things, strict=True):
            place(canvas, rgba, rng.uniform(0.4, 0.52), x, rng.uniform(0.2, 0.8))
            noun = self.noun(row, grammar, painted)
            plain = colour_words(noun.text) or not grammar.chance(0.6)
            said.append((noun, None if plain else colour))
        sides = not any(re.search("left|right", noun.text) for noun, _ in said)
        caption = grammar.pair(*said, ground if grammar.chance(0.6) else None, sides)
        return Sample(np.asarray(canvas), caption, (left["concept"], right["concept"]), None)

    def several(self, row: dict, rng: np.random.Generator) -> Sample | None:
        """Draw a sample of 2 to 4 copies of one thing, all with the same colour.

        Return None if the name has no good plural, or if the thing is a symbol.
        """
        grammar = Grammar(rng)
        rgba, colour, painted = self.thing(row, rng, self.mix.recolour)
        noun = self.noun(row, grammar, painted)
        if not noun.countable or row["symbol"]:
            return None
        canvas, ground = self.ground([row], [rgba], rng)
        count = int(rng.integers(2, 5))
        cells = [(0, 0.5), (1, 0.5)] if count == 2 else [(0, 0), (1, 0), (0, 1), (1, 1)]
        for cell in rng.permutation(len(cells))[:count]:
            place(canvas, rgba, rng.uniform(0.38, 0.48), *cells[cell])
        said = colour if not colour_words(noun.text) and grammar.chance(0.6) else None
        caption = grammar.several(noun, count, said, ground if grammar.chance(0.6) else None)
        return Sample(np.asarray(canvas), caption, (row["concept"],), colour)

    # -- parts ------------------------------------------------------------------------------
    def thing(self, row: dict, rng: np.random.Generator,
              recolour: float) -> tuple[np.ndarray, str | None, bool]:
        """Draw a thing: (RGBA, its true colour term or None, whether it was recoloured).

        `recolour` is the probability of another colour.
        """
        if self.mix.restyle and rng.random() < self.mix.restyle and not row["symbol"]:
            return self.restyled(row, rng, recolour)
        return self.plain(row, rng, recolour)

    def plain(self, row: dict, rng: np.random.Generator,
              recolour: float) -> tuple[np.ndarray, str | None, bool]:
        """Draw a thing in its own style. The return values are those of `thing`."""
        rgba, painted = self.rgba[row["index"]], None
        can = row["category"] in REPAINT and row["set"] not in ON_DISC and not row["symbol"]
        if can and rng.random() < recolour:
            barred = self.forbidden.get(row["concept"], frozenset())
            term = PAINT[int(rng.integers(len(PAINT)))]
            painted = recoloured(rgba, term, rng) if term not in barred else None
        if painted is not None:
            return self.mirrored(painted, row, rng), term, True
        own = self.shares[row["index"]][: len(TERMS)]
        best = int(own.argmax())
        named = own[best] >= SAID_SHARE and row["set"] not in ON_DISC
        return self.mirrored(rgba, row, rng), TERMS[best] if named else None, False

    def restyled(self, row: dict, rng: np.random.Generator,
                 recolour: float) -> tuple[np.ndarray, str | None, bool]:
        """Draw a thing in another style. The return values are those of `thing`."""
        barred = self.forbidden.get(row["concept"], frozenset())
        if rng.random() < 0.3 and (found := inked(self.rgba[row["index"]], rng)):
            if found[1] not in barred:
                return self.mirrored(found[0], row, rng), found[1], True
        rgba, colour, painted = self.plain(row, rng, recolour)
        hand = (outlined if rng.random() < 0.6 else flat)(rgba, rng)
        return (rgba if lost(rgba, hand) else hand), colour, painted

    def mirrored(self, rgba: np.ndarray, row: dict, rng: np.random.Generator) -> np.ndarray:
        """Mirror the drawing half of the time.

        Never mirror symbols, letters, clock times, or concepts with `left` or `right` in the name.
        """
        fixed = row["symbol"] or re.search("left|right|o'clock|thirty|letter", row["concept"])
        return rgba if fixed or rng.random() < 0.5 else rgba[:, ::-1]

    def ground(self, rows: list[dict], things: list[np.ndarray], rng: np.random.Generator
               ) -> tuple[Image.Image, str | None]:
        """Draw a background: (canvas, its colour term, or None for white). Most are white.

        Never use a colour that is held out for one of the things, or that hides one of them.
        """
        barred = frozenset().union(*(self.forbidden.get(r["concept"], ()) for r in rows))
        term = TERMS[int(rng.integers(len(TERMS)))]
        named = prototypes()[term]
        rgb = named[int(rng.integers(len(named)))] + rng.integers(-8, 9, 3)
        rgb = tuple(int(c) for c in np.clip(rgb, 0, 255))
        used = rng.random() < self.mix.ground and term not in barred and term != "white"
        clear = TERMS.index(term) == term_indices(np.uint8(rgb))
        if not (used and clear) or any(hidden(t, rgb) for t in things):
            term, rgb = None, (255, 255, 255)
        return Image.new("RGB", (self.size,) * 2, rgb), term

    def noun(self, row: dict, grammar: Grammar, painted: bool) -> Noun:
        """Draw a name of the concept that is true of this drawing.

        The name has a colour word only if the drawing has the colour, was not recoloured, and the
        colour is not held out for the concept.
        """
        own = self.shares[row["index"]]
        nouns = []
        for noun in nouns_of(usable_names(row["names"], self.banned), row["category"]):
            words = colour_words(noun.text)
            true = all(own[TERMS.index(c)] >= NAMED_SHARE for c in words)
            if not words or (true and not painted
                             and not words & self.forbidden.get(row["concept"], frozenset())):
                nouns.append(noun)
        if not nouns:  # for example a green drawing of "red apple": the name is "apple"
            kept = [w for w in clean(row["concept"]).split() if not colour_words(w)]
            nouns = nouns_of([" ".join(kept) or "thing"], row["category"])
        return nouns[0] if len(nouns) == 1 or grammar.chance(0.6) else grammar.pick(nouns)

    def keywords(self, row: dict, grammar: Grammar) -> list[str]:
        """Draw up to 2 keywords, with a probability of 0.12. Otherwise return an empty list."""
        if not row["keywords"] or not grammar.chance(0.12):
            return []
        words = [w for w in usable_names(row["keywords"], self.banned) if not colour_words(w)
                 and not (self._held_things and self._held_things.search(w))]
        return list(dict.fromkeys(grammar.pick(words) for _ in range(2))) if words else []


def held_colours(pairs: list[dict]) -> dict[str, frozenset[str]]:
    """Return {concept: its held-out colours}."""
    things = dict.fromkeys(pair["concept"] for pair in pairs)
    return {thing: frozenset(p["colour"] for p in pairs if p["concept"] == thing)
            for thing in things}


def forbidden_colours(rows: list[dict], held: dict[str, frozenset[str]]
                      ) -> dict[str, frozenset[str]]:
    """Return {concept: colours held out for it, or for a thing that its names contain}.

    Leave out the concepts without such colours.
    """
    pattern = banned_words([*held])
    found: dict[str, frozenset[str]] = {}
    for row in rows:
        if row["concept"] not in found:
            text = " , ".join([row["concept"], *row["names"]])
            things = {m.group(1) for m in pattern.finditer(text)} if pattern else set()
            found[row["concept"]] = frozenset().union(*(held[t] for t in things))
    return {concept: colours for concept, colours in found.items() if colours}
