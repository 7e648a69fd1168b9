"""clipguide steers image generators with CLIP.

Importing this loads nothing heavy: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Clip": "clip",
    "ClipguideError": "errors",
    "Cutouts": "views",
    "Objective": "objectives",
    "Picture": "pipelines.text_to_image",
    "Prompt": "prompts",
    "Range": "objectives",
    "Recipe": "recipe",
    "Similarity": "objectives",
    "TextToImage": "pipelines.text_to_image",
    "TotalVariation": "objectives",
    "UsageError": "errors",
    "load_clip": "clip",
    "steer": "guidance",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .clip import Clip, load_clip
    from .errors import ClipguideError, UsageError
    from .guidance import steer
    from .objectives import Objective, Range, Similarity, TotalVariation
    from .pipelines.text_to_image import Picture, TextToImage
    from .prompts import Prompt
    from .recipe import Recipe
    from .views import Cutouts


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
