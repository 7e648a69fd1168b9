"""Pictures of the mini generator, kept on disk, so that figures share them and a stop loses little.

Legend: P prompts, S seeds of each, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from clipguide import TextToImage
from clipguide.mini.known import things as known_things
from training.data.captions import article, number_of
from training.evaluate.ledger import Settings

PROMPTS = 400
STEERED, SEEDS = 200, 4
WAYS: dict[str, dict[str, object]] = {
    "plain": {"strength": 0.0},
    "default": {},  # as `clipguide generate` draws: the best of several plain candidates
    "steered": {"method": "shortcut"},
}
COLOURED = 200
PAIRS = 100
VARIED, OF_EACH = 24, 8
RARE = 40  # things with one training drawing
BATCH = 8


class Samples:
    """Draws prompts x seeds, or reads what it drew before with the same weights and settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.weights = settings.weights("generator", "guide", "judge")
        self.folder = settings.out / "samples"

    @cached_property
    def model(self) -> TextToImage:
        names = ("generator", "guide", "judge")
        generator, guide, judge = (str(self.settings.folder(name)) for name in names)
        return TextToImage(model=generator, clip=guide, judge=judge)

    def __call__(self, prompts: Sequence[str], *, seeds: int, way: str) -> np.ndarray:
        """Return uint8 (P, S, H, W, 3): seeds 0 … S - 1 of each prompt, by one of WAYS."""
        step = max(1, BATCH // seeds)
        return np.concatenate([self._some(prompts[k:k + step], seeds, way)
                               for k in range(0, len(prompts), step)])

    def _some(self, prompts: Sequence[str], seeds: int, way: str) -> np.ndarray:
        weights = {"generator": self.weights["generator"]} if way == "plain" else self.weights
        key = json.dumps([list(prompts), seeds, way, weights])
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"
        if not path.exists():
            drawn = self.model(list(prompts), count=seeds, seed=0, batch_size=BATCH, **WAYS[way])
            pixels = np.stack([np.asarray(picture.image) for picture in drawn])
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, pixels.reshape(len(prompts), seeds, *pixels.shape[1:]))
            part.replace(path)
            print(f"  {prompts[0]} … {way}", flush=True)
        return np.load(path)


def things_drawn(concepts: Sequence[str]) -> list[str]:
    """What the generator was trained to draw, of these concepts."""
    return [thing for thing in known_things() if thing in set(concepts)]


def phrase(thing: str, name: str | None = None) -> str:
    """"an apple", but "scissors"; `name` is the thing with a colour, say."""
    return article(name or thing) if number_of(thing) == "one" else name or thing


def concept_prompts(
    things: Sequence[str], count: int = PROMPTS, seed: int = 0
) -> tuple[list[str], list[str]]:
    """(prompts, their things): so many things, drawn by chance."""
    order = np.random.default_rng(seed).permutation(len(things))[:count]
    of = [things[i] for i in order]
    return [phrase(thing) for thing in of], of


def pair_prompts(
    things: Sequence[str], colours: Sequence[str], count: int = PAIRS
) -> list[tuple[str, str, str, str, str]]:
    """(prompt, left thing, right thing, left colour, right colour) of two things with colours."""
    rng, found = np.random.default_rng(3), []
    single = [thing for thing in things if number_of(thing) == "one" and len(thing.split()) < 3]
    for _ in range(count):
        left, right = (single[i] for i in rng.choice(len(single), 2, replace=False))
        said = [colours[int(rng.integers(len(colours)))] for _ in range(2)]
        a, b = (article(f"{colour} {thing}") for colour, thing in zip(said, (left, right)))
        found.append((f"{a} to the left of {b}", left, right, *said))
    return found


def coloured_prompts(
    things: Sequence[str], never: Sequence[tuple[str, str]], colours: Sequence[str]
) -> list[tuple[str, str, bool]]:
    """200 (colour, thing, never trained on), half of them never, if there are so many."""
    rng = np.random.default_rng(0)
    new = [(colour, thing) for colour, thing in never if thing in things]
    new = [new[i] for i in rng.permutation(len(new))[:COLOURED // 2]]
    known = [(colour, thing) for thing in things for colour in colours
             if (colour, thing) not in set(never)]
    known = [known[i] for i in rng.permutation(len(known))[:COLOURED - len(new)]]
    both = [(*pair, True) for pair in new] + [(*pair, False) for pair in known]
    return [both[i] for i in rng.permutation(len(both))]


def pictures(pixels: np.ndarray) -> list[Image.Image]:
    """(…, H, W, 3) as a flat list of pictures."""
    return [Image.fromarray(picture) for picture in pixels.reshape(-1, *pixels.shape[-3:])]
