"""What a pipeline gives: a picture, with how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..recipe import Recipe


@dataclass(frozen=True)
class Picture:
    """A picture, how it was made, its cosines with the guide's text, for guide and judge, what
    steering saw at each step, as `Report.rows` has it, and if they were asked for the `frames`: a
    picture for each step of what its x0 decodes to, the last of them the finished one. `rank`,
    higher is better, is −objective, which best-of goes by. `eased` is the step, from 0, from which
    on it was steered less because the judge disagreed, None where it never did."""

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
    """One sentence about all images whose steering was eased, without a full stop; None if there
    is none. Steps are counted from 1 in it."""
    steps = [picture.eased + 1 for picture in pictures if picture.eased is not None]
    if not steps:
        return None
    whose, first = "Steering was eased", ""
    if len(pictures) > 1:
        whose = f"Steering of {len(steps)} of {len(pictures)} images was eased"
        first = ", the earliest" if len(steps) > 1 else ""
    return f"{whose}{first} from step {min(steps)} on: the judge disagreed"
