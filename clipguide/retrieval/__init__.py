"""Index folders of images in LanceDB, and search them.

Importing this loads nothing slow: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "Answer": "search",
    "Group": "copies",
    "Hit": "search",
    "Index": "search",
    "Progress": "items",
    "Query": "search",
    "compose": "search",
    "default_path": "places",
    "duplicates": "copies",
    "encode_texts": "search",
    "update": "index",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from .copies import Group, duplicates
    from .index import update
    from .items import Progress
    from .places import default_path
    from .search import Answer, Hit, Index, Query, compose, encode_texts


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
