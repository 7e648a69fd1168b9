"""The jobs of a run of text to image: its samples, their settings, and the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .. import images
from ..errors import UsageError
from ..guidance import BestOf, Particles, Shortcut
from ..guidance.auto import Choice, choose
from ..guidance.contract import Method
from ..mini.reader import MapReader
from ..prompts import Prompt, compose, parse, shorten
from .drawing import digest
from .frames import fitted

READ = 256  # pixels of a side of the square that is read of an image


@dataclass(frozen=True)
class Job:
    """One sample to draw."""

    prompt: str
    guide: str
    seed: int


@dataclass(frozen=True)
class Like:
    """An image that the images are to be like.

    Attributes:
        files: its file, with the digest of its pixels, as a recipe has it.
        image: the square in its middle.
        map: its map_1Khw.
        fingerprint: the digest of the weights that read the map.
    """

    files: dict[str, str]
    image: Image.Image
    map: torch.Tensor
    fingerprint: str

    @classmethod
    def read(cls, file: str | Path, reader: MapReader, fingerprint: str) -> Like:
        """Read a file. Warn if it is cut to a square. Raise UsageError if it cannot be read."""
        image_13HW = fitted(str(file), READ, READ)[None]
        (square,) = images.to_pil(image_13HW)
        return cls({str(file): digest(str(file))}, square, reader(image_13HW), fingerprint)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that all samples of a run share."""

    negative: str
    best_of: int
    method: Method
    steps: int
    cfg: float
    width: int
    height: int
    cutouts: int
    decoder: str
    budget: float | None
    memory: float | None
    tiny: str
    tiny_fingerprint: str
    tiny_decoder: torch.nn.Module | None
    rewards: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    question: str = ""
    cfg_window: tuple[float, float] | None = None
    trust_pickle: bool = False
    like: Like | None = None
    refine: int = 0
    trace: bool = False
    frames: bool = False


def auto_of(budget: float | None, given: dict[str, object], best_of: int, *, own: bool) -> Choice:
    """Return the choice of the method "auto"; `own` is that of `choose`. Raise UsageError if an
    argument that it sets is given too."""
    if names := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"auto sets {', '.join(names)} itself: leave it out.")
    if best_of > 1:
        raise UsageError("auto has candidates of its own: leave best_of (--best-of) out.")
    return choose(budget, own=own)


def candidates_of(method: Method, best_of: int) -> tuple[Method, int, int]:
    """Return the method, the number of candidates per image, and how many of these are drawn
    together."""
    if not isinstance(method, (BestOf, Particles)):
        return method, best_of, 1
    if best_of > 1:
        raise UsageError(
            f"{method.name} has candidates of its own: leave best_of (--best-of) out."
        )
    if isinstance(method, BestOf) and method.finish is not None:
        return method, 1, 1  # the method prunes its candidates itself
    if isinstance(method, BestOf):
        return method.each or Shortcut(strength=0.0), method.number, 1
    return method, method.number, method.number


def guides_of(
    guide: str | Sequence[str] | None, prompts: Sequence[str], *, like: bool = False
) -> list[str]:
    """Return one guide text per prompt. Raise UsageError for a prompt or guide that cannot be
    parsed. `like`: whether there is an image in the place of an empty prompt."""
    if not prompts:
        raise UsageError("There is no prompt: say what to draw.")
    if guide is None:
        guides = list(prompts)
    else:
        guides = [guide] * len(prompts) if isinstance(guide, str) else list(guide)
    if len(guides) != len(prompts):
        raise UsageError(
            f"{len(prompts)} prompts need one guide text or as many, not {len(guides)}."
        )
    for prompt, text in zip(prompts, guides, strict=True):
        for said in (prompt, text):
            if said or not like:
                parse(said)
        to_draw(prompt)
    return guides


def goal(guide: str, like: Like | None) -> Prompt:
    """Return what CLIP compares an image with: the guide text, or without one the image `like`."""
    return parse(guide) if guide or like is None else compose(like.image)


def to_draw(prompt: str) -> str:
    """Return the text that conditions the generator: "" for an empty prompt."""
    if not prompt:
        return ""
    parsed: Prompt = parse(prompt)
    if not parsed.text:
        raise UsageError(
            f"Every part of the prompt {shorten(prompt)!r} has a negative weight: add what to draw."
        )
    return parsed.text
