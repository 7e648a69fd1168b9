"""A folder of pictures as something that one can ask: kept in LanceDB, on the same engine."""

from .duplicates import Group, duplicates
from .index import Progress, update
from .search import Answer, Hit, Index, Query, compose, encode_texts
from .store import default_path

__all__ = [
    "Answer",
    "Group",
    "Hit",
    "Index",
    "Progress",
    "Query",
    "compose",
    "default_path",
    "duplicates",
    "encode_texts",
    "update",
]
