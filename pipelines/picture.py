"""The result of a pipeline: an image, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..recipe import Recipe


@dataclass(frozen=True)
class Picture:
    """An image and how it was made.

    Attributes:
        image: the image.
        recipe: the recipe, which draws it again.
        guide_score: the cosine similarity with the guide's prompt, by the guide.
        judge_score: the same by the judge.
        rank: the score by which best-of selects. Higher is better. It is that of `select`. Without
            `select`, it is the objective with its sign changed, plus the judge's score if nothing
            steered.
        trace: the scores of each step, as `Report.rows` returns them.
        frames: the decoded x0 of each step, if `Generation.frames` was set. The last one is the
            finished image.
        eased: the first step, from 0, at which the image was steered less because the judge's score
            fell; None if this never happened.
    """

    image: Image.Image
    recipe: Recipe
    guide_score: float
    judge_score: float | None
    seed: int
    trace: list[dict[str, float]]
    frames: tuple[Image.Image, ...] = ()
    rank: float = 0.0
    eased: int | None = None


def easing(pictures: Sequence[Picture]) -> str | None:
    """Return one sentence about all images whose steering was reduced, without a full stop, or
    None. It counts steps from 1."""
    steps = [picture.eased + 1 for picture in pictures if picture.eased is not None]
    if not steps:
        return None
    whose, first = "Steering was eased", ""
    if len(pictures) > 1:
        whose = f"Steering of {len(steps)} of {len(pictures)} images was eased"
        first = ", the earliest" if len(steps) > 1 else ""
    return f"{whose}{first} from step {min(steps)} on: the judge disagreed"
