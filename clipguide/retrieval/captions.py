"""What is said of images: in a table of captions, or in a .txt beside an image, of its name."""

from __future__ import annotations

import os

from .. import tables
from ..errors import UsageError

GIVEN = -1  # the stamp of a caption from a table
ENDING = ".txt"


class Captions:
    """The captions of a table (see `tables.captions`); none without one. `used` are those of images
    that were asked for.

    UsageError if the table cannot be read, has no captions, or anything but one text for an image.
    """

    def __init__(self, table: str | os.PathLike | None = None) -> None:
        self.table = table
        self.texts = {} if table is None else tables.captions(table)
        self.used: set[str] = set()
        self._home = "" if table is None else os.path.abspath(os.path.dirname(table))
        if table is not None and not self.texts:
            raise UsageError(f"{table} has no captions: each row needs a path and a caption.")

    def __getitem__(self, path: str) -> str | None:
        """What the table says of a file or URL."""
        if not self.texts:
            return None
        key = os.path.normpath(os.path.join(self._home, path))
        if (text := self.texts.get(key)) is not None:
            self.used.add(key)
        return text

    @property
    def share(self) -> str:
        """'2 of 3 captions of captions.csv'."""
        return f"{len(self.used)} of {len(self.texts)} captions of {self.table}"


def stamp(path: str) -> int | None:
    """The time in ns of the .txt beside a file; None without one."""
    try:
        return os.stat(beside(path)).st_mtime_ns
    except (OSError, ValueError):
        return None


def beside(path: str) -> str:
    """The name of the .txt beside a file or URL."""
    return os.path.splitext(path)[0] + ENDING
