"""Read the captions of images from a table, or from a .txt file next to each image."""

from __future__ import annotations

import os

from .. import tables
from ..errors import UsageError

GIVEN = -1  # stamp of a caption from a table
ENDING = ".txt"


class Captions:
    """The captions of a table (see `tables.captions`). `used` are those of images that were looked
    up.

    Raises:
        UsageError: the table cannot be read, has no captions, or has several texts for one image.
    """

    def __init__(self, table: str | os.PathLike | None = None) -> None:
        self.table = table
        self.texts = {} if table is None else tables.captions(table)
        self.used: set[str] = set()
        self._home = "" if table is None else os.path.abspath(os.path.dirname(table))
        if table is not None and not self.texts:
            raise UsageError(f"{table} has no captions: each row needs a path and a caption.")

    def __getitem__(self, path: str) -> str | None:
        """Return the caption of a file or URL."""
        if not self.texts:
            return None
        key = os.path.normpath(os.path.join(self._home, path))
        if (text := self.texts.get(key)) is not None:
            self.used.add(key)
        return text

    @property
    def share(self) -> str:
        """Return a summary such as '2 of 3 captions of captions.csv'."""
        return f"{len(self.used)} of {len(self.texts)} captions of {self.table}"


def stamp(path: str) -> int | None:
    """Return the time in ns of the .txt next to a file, or None."""
    try:
        return os.stat(beside(path)).st_mtime_ns
    except (OSError, ValueError):
        return None


def beside(path: str) -> str:
    """Return the name of the .txt next to a file or URL."""
    return os.path.splitext(path)[0] + ENDING
