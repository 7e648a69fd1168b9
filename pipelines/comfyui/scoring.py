"""Nodes that score images: load a reward, score, rank, find the best seed.

Shapes: B images of H x W pixels and 3 channels, float in [0, 1].
"""

from __future__ import annotations

import os
import re

import torch

from clipguide.errors import UsageError
from clipguide.images import to_pil
from clipguide.prompts import shorten
from clipguide.rerank import Criterion, plain_order
from clipguide.rewards import REWARDS, Reward

from .models import CLIP, REWARD, by_clip, by_reward, device

LAST_SEED = 2**64 - 1  # largest seed of ComfyUI's samplers
JUDGED = {
    "images": ("IMAGE",),
    "text": ("STRING", {"multiline": True, "tooltip": "what the images should show"}),
    "clip": (CLIP[0], {**CLIP[1], "tooltip": "scores if no reward is connected"}),
}
OPTIONAL = {"reward": (REWARD, {"tooltip": "scores in place of the CLIP"})}


class LoadReward:
    """The node that loads a reward by its name."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Loads a reward, to steer by it or to score images."
    FUNCTION = "load"
    RETURN_TYPES = (REWARD,)
    RETURN_NAMES = ("reward",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        return {
            "required": {
                "name": (sorted(REWARDS), {"tooltip": "docs/guides.md lists them"}),
                "weights": (
                    "STRING",
                    {"default": "", "tooltip": "a file, folder or name; empty is the default"},
                ),
                "question": ("STRING", {"default": "", "tooltip": "vlm only; {} is the prompt"}),
            }
        }

    def load(self, name: str, weights: str, question: str) -> tuple[Reward]:
        """Return the reward, on ComfyUI's device.

        Weights in a pickle are read only if $CLIPGUIDE_TRUST_PICKLE is 1, because somebody else may
        have made the workflow.

        Raises:
            UsageError: there is no such reward, its package is missing, or it needs weights.
            ClipguideError: it cannot be loaded.
        """
        asked = f"{name}={weights.strip()}" if weights.strip() else name
        trusted = os.environ.get("CLIPGUIDE_TRUST_PICKLE") == "1"
        reward = Reward(asked, question=question, trust_pickle=trusted, device=device())
        return (reward.load(),)


class ScoreImages:
    """The node that returns one score per image, and a report."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Scores each image against the text; higher is better."
    FUNCTION = "score"
    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("scores", "report")
    OUTPUT_IS_LIST = (True, False)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        return {"required": JUDGED, "optional": OPTIONAL}

    def score(
        self, images: torch.Tensor, text: str, clip: str, reward: Reward | None = None
    ) -> tuple[list[float], str]:
        """Return a score for each image, and the report. Raise the errors of `RankImages.rank`."""
        score_B = _scores(images, text, clip, reward)
        return score_B.tolist(), _report(score_B)


class RankImages:
    """The node that sorts a batch, the best image first."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Puts the images in order by their scores, the best first."
    FUNCTION = "rank"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        top = {"default": 0, "min": 0, "max": 4096, "tooltip": "how many to keep; 0 keeps all"}
        return {"required": {**JUDGED, "top": ("INT", top)}, "optional": OPTIONAL}

    def rank(
        self, images: torch.Tensor, text: str, clip: str, top: int, reward: Reward | None = None
    ) -> tuple[torch.Tensor, str]:
        """Return the best images, and the report. Equal scores keep the order of the batch.

        Raises:
            UsageError: the batch is empty, a pixel or a score is not a number, `top` is negative,
                or the text cannot be parsed.
            ClipguideError: the CLIP or the reward fails.
        """
        if top < 0:
            raise UsageError(f"top is the number of images to keep, or 0 for all, not {top}.")
        score_B = _scores(images, text, clip, reward)
        return images[plain_order(score_B)[: top or None]], _report(score_B)


class BestSeed:
    """The node that returns the seed of the best image."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Returns the seed of the best image, and its place in the batch."
    FUNCTION = "best"
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("seed", "batch_index")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        tip = "one seed for each image, as 1, 2, 3; or the one seed of the whole batch"
        seeds = ("STRING", {"default": "0", "tooltip": tip})
        return {"required": {**JUDGED, "seeds": seeds}, "optional": OPTIONAL}

    def best(
        self, images: torch.Tensor, text: str, clip: str, seeds: str, reward: Reward | None = None
    ) -> tuple[int, int]:
        """Return the seed of the best image, and its place in the batch, from 0.

        Raises:
            UsageError: the seeds are not whole numbers, or not as many as the images; and for what
                `RankImages.rank` raises it.
        """
        found = _seeds(seeds, len(images))
        place = plain_order(_scores(images, text, clip, reward))[0]
        return found[place], place


def _scores(
    image_BHW3: torch.Tensor, text: str, clip: str, reward: Reward | None
) -> torch.Tensor:
    """Return score_B in float64. Each image is scored alone, so a large batch needs no more memory
    and changes no score."""
    shape = tuple(image_BHW3.shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise UsageError(f"Images are of shape B x H x W x 3, not {shape}: convert them to RGB.")
    if not all(shape):
        raise UsageError("The batch has no image: connect one with at least one image.")
    finite_B = image_BHW3.isfinite().flatten(1).all(1)
    if not finite_B.all():
        place = int(finite_B.logical_not().nonzero()[0])
        raise UsageError(
            f"Image {place} has pixels that are not numbers: look at the nodes that made it."
        )
    judge = by_reward(reward, text) if reward else by_clip(clip, text, device())
    score_B = [judge.score_pictures(to_pil(one[None].movedim(-1, 1))) for one in image_BHW3]
    name = str(reward.asked) if reward else clip
    return Criterion(name, torch.cat(score_B).double().cpu()).score_B


def _report(score_B: torch.Tensor) -> str:
    """Return one line per image, the best first."""
    lines = [f"image {place}: {float(score_B[place]):.4f}" for place in plain_order(score_B)]
    return "\n".join(lines)


def _seeds(text: str, count: int) -> list[int]:
    """Return a seed for each image. Raise UsageError if the text has other seeds."""
    words = re.split(r"[\s,]+", text.strip(" \t\r\n,"))
    for word in words:
        if not re.fullmatch(r"[0-9]+", word) or int(word) > LAST_SEED:
            raise UsageError(
                f"Seeds are whole numbers from 0 to {LAST_SEED}, as 1, 2, 3, not {shorten(word)!r}."
            )
    if len(words) not in (1, count):
        raise UsageError(
            f"There are {count} images and {len(words)} seeds: give one for each, or one for all."
        )
    return [int(word) for word in words] * (count if len(words) == 1 else 1)
