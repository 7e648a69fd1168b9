"""Objectives: image_B3HW in [0, 1] -> loss_B, one loss an image, lower is better.

They add and scale: `Similarity(clip, "a red fox") + 0.1 * TotalVariation()`. No objective sums or
averages over the batch; only the driver that takes the gradient does.
"""

from .aesthetic import Aesthetic
from .areas import Region, regions
from .balanced import Balanced
from .base import (
    Custom,
    Generators,
    InTurn,
    Nothing,
    Objective,
    Rolled,
    Scheduled,
    as_objective,
    finished,
    fresh_generators,
)
from .pixels import Near, Palette, Range, Saturation, Symmetry, TotalVariation
from .preference import HPSv2, ImageReward, PickScore, Preference
from .similarity import KINDS, InitSimilarity, Similarity, _dot, _spherical

__all__ = [
    "KINDS",
    "Aesthetic",
    "Balanced",
    "Custom",
    "Generators",
    "HPSv2",
    "ImageReward",
    "InTurn",
    "InitSimilarity",
    "Near",
    "Nothing",
    "Objective",
    "Palette",
    "PickScore",
    "Preference",
    "Range",
    "Region",
    "Rolled",
    "Saturation",
    "Scheduled",
    "Similarity",
    "Symmetry",
    "TotalVariation",
    "as_objective",
    "finished",
    "fresh_generators",
    "regions",
]
