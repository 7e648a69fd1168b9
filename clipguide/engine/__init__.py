"""Embed image files: find them, decode them while the model works, cache the vectors.

Importing this loads nothing slow: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "Cache": "cache",
    "Embedded": "engine",
    "Engine": "engine",
    "Named": "files",
    "default_path": "cache",
    "find": "files",
    "processes": "distributed",
    "processors": "resources",
    "shared": "distributed",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from .cache import Cache, default_path
    from .distributed import processes, shared
    from .engine import Embedded, Engine
    from .files import Named, find
    from .resources import processors


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
