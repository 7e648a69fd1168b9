"""Rewards that look at images, not tensors: no gradient, and every transform is their own.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ..errors import UsageError
from ..images import to_pil
from ..objectives import Objective
from ..objectives.base import times_each
from ..prompts import Prompt


class OfPictures(Objective):
    """Minus the score of each image with its text; `score_one` is the subclass's.

    Args:
        texts: one for all images, or a list as of `Similarity`.
    """

    differentiable = False

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def score_one(self, picture: Image.Image, text: str) -> float:
        """The score of an RGB image, higher is better."""
        raise NotImplementedError

    def __call__(self, image_B3HW, generators=None):
        return -self.score_pictures(to_pil(image_B3HW)).to(image_B3HW.device)

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Score_B of RGB images."""
        times = times_each(len(pictures), len(self.texts), "prompts")
        texts = [text for text in self.texts for _ in range(times)]
        scores = [self.score_one(*pair) for pair in zip(pictures, texts, strict=True)]
        return torch.tensor(scores, dtype=torch.float32)


def plain(prompts: Sequence[Prompt], name: str) -> list[str]:
    """The texts of prompts: their parts of positive weight, joined by commas. UsageError where
    there is none."""
    texts = [prompt.text for prompt in prompts]
    if not all(texts):
        raise UsageError(f"{name} reads texts, and a part of positive weight is in none of them.")
    return texts
