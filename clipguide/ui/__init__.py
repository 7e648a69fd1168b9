"""The page in the browser: generate, search and rerank. It needs Gradio (clipguide[ui]).

Importing this loads nothing slow: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {"Models": "models", "listen": "server", "serve": "server"}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from .models import Models
    from .server import listen, serve


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
