"""clipguide steers image generators with CLIP.

Importing this loads nothing slow: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Aesthetic": "objectives",
    "Balanced": "objectives",
    "Clip": "clip",
    "ClipguideError": "errors",
    "Cutouts": "views",
    "Drawing": "pipelines.text_to_canvas",
    "Ensemble": "clip",
    "HPSv2": "objectives",
    "ImagePart": "prompts",
    "ImageReward": "objectives",
    "InTurn": "objectives",
    "InitSimilarity": "objectives",
    "Near": "objectives",
    "Objective": "objectives",
    "Palette": "objectives",
    "PickScore": "objectives",
    "Picture": "pipelines.picture",
    "Preference": "objectives",
    "Prompt": "prompts",
    "Range": "objectives",
    "Recipe": "recipe",
    "Region": "objectives",
    "Reward": "rewards",
    "Rolled": "objectives",
    "Saturation": "objectives",
    "Schedule": "schedules",
    "Scheduled": "objectives",
    "Similarity": "objectives",
    "Symmetry": "objectives",
    "TextToCanvas": "pipelines.text_to_canvas",
    "TextToImage": "pipelines.text_to_image",
    "TotalVariation": "objectives",
    "UsageError": "errors",
    "Warped": "views",
    "compose": "prompts",
    "load_clip": "clip",
    "load_pipeline": "pipelines.loading",
    "make_objective": "objectives",
    "regions": "objectives",
    "register_canvas": "pipelines.canvas_kinds",
    "register_family": "guidance",
    "register_method": "guidance",
    "register_objective": "objectives",
    "register_reward": "rewards",
    "register_scheduler": "guidance",
    "schedule": "schedules",
    "steer": "guidance",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .clip import Clip, Ensemble, load_clip
    from .errors import ClipguideError, UsageError
    from .guidance import register_family, register_method, register_scheduler, steer
    from .objectives import (
        Aesthetic,
        Balanced,
        HPSv2,
        ImageReward,
        InitSimilarity,
        InTurn,
        Near,
        Objective,
        Palette,
        PickScore,
        Preference,
        Range,
        Region,
        Rolled,
        Saturation,
        Scheduled,
        Similarity,
        Symmetry,
        TotalVariation,
        make_objective,
        regions,
        register_objective,
    )
    from .pipelines.canvas_kinds import register_canvas
    from .pipelines.loading import load_pipeline
    from .pipelines.picture import Picture
    from .pipelines.text_to_canvas import Drawing, TextToCanvas
    from .pipelines.text_to_image import TextToImage
    from .prompts import ImagePart, Prompt, compose
    from .recipe import Recipe
    from .rewards import Reward, register_reward
    from .schedules import Schedule, schedule
    from .views import Cutouts, Warped


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
