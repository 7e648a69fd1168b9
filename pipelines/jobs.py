"""The jobs of a run of text to image: its samples, their settings, and the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import UsageError
from ..guidance import BestOf, Particles, Shortcut
from ..guidance.auto import Choice, choose
from ..guidance.contract import Method
from ..prompts import Prompt, parse, shorten


@dataclass(frozen=True)
class Job:
    """One sample to draw."""

    prompt: str
    guide: str
    seed: int


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


def guides_of(guide: str | Sequence[str] | None, prompts: Sequence[str]) -> list[str]:
    """Return one guide text per prompt. Raise UsageError for a prompt or guide that cannot be
    parsed."""
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
        to_draw(prompt)
        parse(text)
    return guides


def to_draw(prompt: str) -> str:
    """Return the text that conditions the generator."""
    parsed: Prompt = parse(prompt)
    if not parsed.text:
        raise UsageError(
            f"Every part of the prompt {shorten(prompt)!r} has a negative weight: add what to draw."
        )
    return parsed.text
