"""What a pipeline gives: a picture, with how it was made."""

from __future__ import annotations

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
        rank: −objective, by which best-of selects; higher is better.
        trace: what steering saw at each step, as `Report.rows`.
        frames: if asked for, the decoded x0 of each step. The last one is the finished image.
    """

    image: Image.Image
    recipe: Recipe
    guide_score: float
    judge_score: float | None
    seed: int
    trace: list[dict[str, float]]
    frames: tuple[Image.Image, ...] = ()
    rank: float = 0.0
