"""The records of an update: listed files, tasks, rows to write, and progress."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.cache import signed

if TYPE_CHECKING:
    import torch

    from .facts import Facts

COPIED = ("width", "height", "format", "date", "camera", "prompt", "thumbnail")
EPOCH = datetime(1970, 1, 1)
MICROSECOND = 1000  # ns


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of an update.

    Attributes:
        total: the number of files.
        done: the number of files that are finished.
        new: the number of images that are new in the index.
        changed: the number of images whose content changed.
        moved: the number of images that have another path.
        same: the number of images that did not change.
        gone: the number of images that were removed from the index.
        failed: the number of files that cannot be read.
        rate: images per second.
        left: the estimated time that is left, in seconds.
        kept: the paths of the last commit.
        errors: one sentence for each file that cannot be read, since the last Progress.
    """

    total: int
    done: int
    new: int = 0
    changed: int = 0
    moved: int = 0
    same: int = 0
    gone: int = 0
    failed: int = 0
    rate: float = 0.0
    left: float = 0.0
    kept: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listed:
    """A listed file. For an object, it has the size and times of the listing, the time of the .txt
    next to it, and the time (ns) before the listing."""

    path: str
    about: Any = None
    stamp: int | None = None
    at: int = 0


@dataclass(frozen=True)
class Work:
    """A file to read, or one whose caption has changed (then `facts` are known). `at` is the time
    before it was read, `caption` the caption of a table. `had` says whether the index has its row.
    """

    path: str
    at: int
    about: Any
    stamp: int | None
    caption: str | None
    had: bool
    facts: Facts | None = None


@dataclass
class Item:
    """An image to write: with a vector, or as a copy of a row with the same content."""

    work: Work
    facts: Facts
    unit_D: torch.Tensor | None = None


def arrow(records: Sequence[dict[str, Any]], schema: Any) -> Any:
    """Return records as an Arrow table. Lists, such as vectors, have the length that the schema
    says; whole arrays of them are made, because Arrow takes a list number by number."""
    import pyarrow as pa

    def column(name: str, kind: Any) -> Any:
        values = [record[name] for record in records]
        if not pa.types.is_fixed_size_list(kind):
            return pa.array(values, kind)
        flat = np.asarray(values, kind.value_type.to_pandas_dtype()).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)

    return pa.table([column(field.name, field.type) for field in schema], schema=schema)


def row_of(place: str, about: Any, stamp: int | None, at: int) -> dict[str, Any]:
    """Return the columns of the file itself."""
    return {
        "path": place,
        "folder": os.path.dirname(place),
        "size": about.st_size,
        "mtime": about.st_mtime_ns // MICROSECOND,
        "inode": signed(about.st_ino),
        "caption_mtime": stamp,
        "indexed_at": EPOCH + timedelta(microseconds=at // MICROSECOND),
    }
