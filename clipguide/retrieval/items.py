"""What passes through an update: what is listed, what is to be done, what is to be written, and
how far it is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..engine.cache import signed

if TYPE_CHECKING:
    import torch

    from .facts import Facts

COPIED = ("width", "height", "format", "date", "camera", "prompt", "thumbnail")
EPOCH = datetime(1970, 1, 1)
MICROSECOND = 1000  # ns


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an update is: images of each kind so far, `done` of `total` looked at.

    `kept` are the paths that the last commit acknowledged, `errors` what could not be read since
    the last Progress, each one sentence. `rate` is in images a second, `left` in seconds.
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
    """A file that was listed; of an object what the listing said: size and times, the time of the
    .txt beside it, and the moment before it was listed, in ns."""

    path: str
    about: Any = None
    stamp: int | None = None
    at: int = 0


@dataclass(frozen=True)
class Work:
    """A file to be read, or of which only the caption changed (`facts` are then known), looked at
    after the moment `at`; `caption` is what a table says, `had` whether the index has its row."""

    path: str
    at: int
    about: Any
    stamp: int | None
    caption: str | None
    had: bool
    facts: Facts | None = None


@dataclass
class Item:
    """An image to be written: with a vector, or else as a copy of a row of the same content."""

    work: Work
    facts: Facts
    unit_D: torch.Tensor | None = None


def row_of(place: str, about: Any, stamp: int | None, at: int) -> dict[str, Any]:
    """The columns of a file itself."""
    return {
        "path": place,
        "folder": os.path.dirname(place),
        "size": about.st_size,
        "mtime": about.st_mtime_ns // MICROSECOND,
        "inode": signed(about.st_ino),
        "caption_mtime": stamp,
        "indexed_at": EPOCH + timedelta(microseconds=at // MICROSECOND),
    }
