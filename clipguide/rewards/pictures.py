"""Rewards of PIL images instead of tensors. They have no gradient, and transform the images
themselves.

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
    """Minus the score of each image with its text. A subclass has `score_one`.

    Args:
        texts: one text for all images, or a list, as for `Similarity`.
    """

    differentiable = False

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def score_one(self, picture: Image.Image, text: str) -> float:
        """Return the score of an RGB image. Higher is better."""
        raise NotImplementedError

    def __call__(self, image_B3HW, generators=None):
        return -self.score_pictures(to_pil(image_B3HW)).to(image_B3HW.device)

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the score_B of RGB images. Raise UsageError for an image that the model refuses,
        such as one that is very long."""
        times = times_each(len(pictures), len(self.texts), "prompts")
        texts = [text for text in self.texts for _ in range(times)]
        scores = []
        for picture, text in zip(pictures, texts, strict=True):
            try:
                scores.append(self.score_one(picture, text))
            except ValueError as error:
                size = " x ".join(map(str, picture.size))
                raise UsageError(
                    f"The reward cannot read an image of {size} pixels: {error}. Crop or leave out "
                    "that image."
                ) from error
        return torch.tensor(scores, dtype=torch.float32)


def plain(prompts: Sequence[Prompt], name: str) -> list[str]:
    """Return the texts of prompts: their parts with a positive weight, joined by commas. Raise
    UsageError if a prompt has none."""
    texts = [prompt.text for prompt in prompts]
    if not all(texts):
        raise UsageError(f"{name} reads texts, and a part of positive weight is in none of them.")
    return texts
