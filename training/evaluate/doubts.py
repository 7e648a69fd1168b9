"""Measure the warnings that an image may not show its prompt: for good images, where they are false
alarms, and for prompts that the embedded generator cannot draw, where they are right.

Legend: B images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from clipguide import mini
from clipguide.mini import known
from clipguide.mini.memory import MapMemory
from clipguide.mini.names import Names
from training.evaluate import samples
from training.evaluate.ledger import HERE, Figure, Settings, figure
from training.eyes import EYES, VERDICTS, lines

UNKNOWN = HERE / "unknown.txt"


def eyes(settings: Settings) -> Iterator[Figure]:
    """Yield what reviewers said of images that they saw one by one (`python -m training.eyes`)."""
    found = json.loads(EYES.read_text())
    said = [verdict for row in found["prompts"].values() for verdict in row["said"]]
    note = f"{len(found['prompts'])} prompts, {found['reviewers']} reviewers"
    for what in VERDICTS:
        yield figure(f"generator: looked at, {what}", said.count(what) / len(said),
                     n=len(said), weights=found["weights"], note=note)
    doubted, names = {what: [] for what in VERDICTS}, memory_names()
    for prompt, row in found["prompts"].items():
        if len(set(row["said"])) == 1:
            doubted[row["said"][0]].append(warned(prompt, row["guide"] + row["judge"], names))
    for what, warned_N in doubted.items():
        if warned_N:
            share = sum(map(bool, warned_N)) / len(warned_N)
            yield figure(f"generator: doubted, of {what} images", share, n=len(warned_N),
                         weights=found["weights"], note="all reviewers agree")


def unknown(settings: Settings) -> Iterator[Figure]:
    """Measure how often the command warns, by the words or by the scores of the image of seed 0, of
    the prompts of unknown.txt."""
    prompts = settings.cut(lines(UNKNOWN))
    drawn = samples.Samples(settings)(prompts, seeds=1, way="default")
    sum_B = sums(settings, prompts, samples.pictures(drawn)).tolist()
    names = memory_names()
    said = [warned(prompt, total, names) for prompt, total in zip(prompts, sum_B)]
    yield figure("generator: doubted, of prompts that it cannot draw",
                 sum(map(bool, said)) / len(said), n=len(said),
                 weights=settings.weights("generator", "guide", "judge"),
                 note=f"{said.count('words')} by their words, {said.count('scores')} by the scores "
                 "of the image")


@dataclass(frozen=True)
class Drawn:
    """Images of prompts, and whether the referee finds each of them right."""

    prompts: list[str]
    images: list[Image.Image]
    right_B: torch.Tensor


def by_referee(
    settings: Settings, objects: Drawn, others: Sequence[Drawn], weights: dict[str, str]
) -> Iterator[Figure]:
    """Measure how often an image has a warning by its scores: for single objects that the referee
    names correctly or not; and for all right images, the `others` too, of short and of long
    prompts. `python -m training.evaluate generator` prints which threshold 95 % pass."""
    every = [objects, *others]
    prompts = [prompt for drawn in every for prompt in drawn.prompts]
    sum_B = sums(settings, prompts, [image for drawn in every for image in drawn.images])
    low_B = sum_B < torch.tensor([known.least(prompt) for prompt in prompts])
    long_B = torch.tensor([len(known.split(prompt)) >= known.LONG for prompt in prompts])
    right_B = torch.cat([drawn.right_B for drawn in every])
    single_B = torch.arange(len(prompts)) < len(objects.prompts)
    either = f"{known.LEAST}, or {known.LEAST_IF_LONG} for a long prompt"
    for what, of_B, number in (
        ("images named by the referee", single_B & right_B, either),
        ("images not named by the referee", single_B & ~right_B, either),
        (f"right images, up to {known.LONG - 1} words", ~long_B & right_B, known.LEAST),
        (f"right images, {known.LONG} words or more", long_B & right_B, known.LEAST_IF_LONG),
    ):
        if of_B.any():
            passed = sum_B[of_B].quantile(0.05)
            yield figure(f"generator: doubted, of {what}", low_B[of_B].float().mean(),
                         n=int(of_B.sum()), weights=weights,
                         note=f"below {number}; 95 % have more than {passed:.3f}")


def memory_names() -> Names:
    """Return the names of what the embedded generator remembers."""
    return MapMemory.from_pretrained(mini.path("generator") / "memory").names


def sums(settings: Settings, prompts: list[str], drawn: list[Image.Image]) -> torch.Tensor:
    """Return the sum_B of the scores by guide and judge."""
    sum_B = torch.zeros(len(drawn))
    for clip in (settings.clip("guide"), settings.clip("judge")):
        sum_B += (clip.encode_pictures(drawn) * clip.encode_text(prompts)).sum(1)
    return sum_B


def warned(prompt: str, total: float, names: Names) -> str:
    """Return "words" or "scores", by which the command warns about an image whose scores have this
    sum, or ""."""
    several = names.scene(prompt) is not None
    if known.doubt(prompt, several=several):
        return "words"
    return "scores" if known.unlike(prompt, total, 0.0, several=several) else ""
