"""Objectives: image_B3HW in [0, 1] -> loss_B, one loss for each image. Lower is better.

You can add objectives and multiply them by numbers: `Similarity(clip, "a red fox") + 0.1 *
TotalVariation()`. No objective sums or averages over the batch. Only the code that takes the
gradient sums the losses.
"""

from collections.abc import Callable

from ..registry import Registry
from .aesthetic import Aesthetic
from .areas import Region, regions
from .balanced import Balanced
from .base import Generators, Nothing, Objective, Rolled, fresh_generators, without_gradient
from .custom import Custom, as_objective
from .image_reward import ImageReward
from .pixels import Near, Palette, Range, Saturation, Symmetry, TotalVariation
from .preference import HPSv2, PickScore, Preference
from .scheduled import InTurn, Scheduled, finished
from .similarity import KINDS, InitSimilarity, Similarity, as_prompts, dot, spherical

OBJECTIVES: Registry[Callable[..., Objective]] = Registry(
    "objective",
    {
        "aesthetic": Aesthetic,
        "hps-v2": HPSv2,
        "image-reward": ImageReward,
        "palette": Palette,
        "pick-score": PickScore,
        "range": Range,
        "saturation": Saturation,
        "similarity": Similarity,
        "symmetry": Symmetry,
        "total-variation": TotalVariation,
    },
)


def register_objective(
    name: str, make: Callable[..., Objective], *, replace: bool = False
) -> Callable[..., Objective]:
    """Register an objective under a name.

    Args:
        name: the name that `make_objective` takes.
        make: a class of objectives, or a function that returns one.
        replace: whether this entry may replace one of the same name.

    Raises:
        UsageError: the name is taken.
    """
    return OBJECTIVES.register(name, make, replace=replace)


def make_objective(name: str, *args: object, **settings: object) -> Objective:
    """Make an objective by its name, with the arguments of its class.

    Raises:
        UsageError: no objective has this name.
    """
    return OBJECTIVES.find(name)(*args, **settings)


__all__ = [
    "KINDS",
    "OBJECTIVES",
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
    "make_objective",
    "regions",
    "register_objective",
    "without_gradient",
]
