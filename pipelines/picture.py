"""What a pipeline gives: a picture, with how it was made."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..recipe import Recipe


@dataclass(frozen=True)
class Picture:
    """A picture, how it was made, its cosines with the guide's text, for guide and judge, what
    steering saw at each step, as `Report.rows` has it, and if they were asked for the `frames`: a
    picture for each step of what its x0 decodes to, the last of them the finished one. `rank`,
    higher is better, is −objective, which best-of goes by."""

    image: Image.Image
    recipe: Recipe
    guide_score: float
    judge_score: float | None
    seed: int
    trace: list[dict[str, float]]
    frames: tuple[Image.Image, ...] = ()
    rank: float = 0.0
