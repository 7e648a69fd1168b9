"""Read tables of images with a caption or a label in each row."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine.files import URLS
from ..errors import UsageError
from ..tables import CAPTION, IMAGE, choose, located, open_table, text

LABEL = ("label", "class", "category", "class_name", "label_name")


@dataclass(frozen=True)
class Row:
    """An image and its text in the source: the name of a class, or a caption, or "".

    The bytes are in `file`, from `offset` on if it holds other images too.
    """

    path: str
    text: str
    file: str = ""
    offset: int = -1
    size: int = -1


@dataclass
class Listing:
    """The content of a source: rows whose texts are class names (`classes`) or captions, images
    outside the folders of classes, folders without images, and the names of numbered classes.
    `spill` keeps the file of images that were in a table."""

    rows: list[Row]
    classes: bool
    passed: list[str] = field(default_factory=list)
    hollow: list[str] = field(default_factory=list)
    names: Sequence[str] | None = None
    spill: Any = None


class Spill:
    """A temporary file for the images inside a table. It is deleted with this object."""

    def __init__(self) -> None:
        handle, self.file = tempfile.mkstemp(prefix="clipguide-", suffix=".pictures")
        self._stream = os.fdopen(handle, "wb")
        weakref.finalize(self, _remove, self.file)

    def add(self, content: bytes) -> tuple[int, int]:
        """Add an image. Return its offset and its length in bytes."""
        place = self._stream.tell()
        self._stream.write(content)
        self._stream.flush()
        return place, len(content)


def _remove(file: str) -> None:
    Path(file).unlink(missing_ok=True)


def read(
    file: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
) -> Listing:
    """Return the rows of a table, with paths relative to its folder.

    Columns that are not named are found by their usual names, a caption before a label. A list of
    captions makes one row for each.

    In a parquet, an image may be the bytes themselves, as in data sets of the hub: a struct of
    bytes and path. They are copied to a temporary file, one row at a time.

    Raises:
        UsageError: the table cannot be read, or a column does not exist.
    """
    table = open_table(file)
    image = choose(table.columns, image_column, IMAGE, "image", str(file))
    said, classes = text_column(table.columns, caption_column, label_column, str(file))
    found, spill = [], Spill()
    for where, row in table.rows():
        at = place(row.get(image), file.parent, where, spill)
        found += [replace(at, text=one) for one in texts(row.get(said), where)]
    return Listing(found, classes, names=table.features.get(said) if classes else None, spill=spill)


def text_column(
    columns: Sequence[str], caption: str | None, label: str | None, where: str
) -> tuple[str, bool]:
    """Return the column that says what an image shows, and whether it names a class. Raise
    UsageError if there is none, or if both are named."""
    if caption is not None and label is not None:
        raise UsageError("An image has a caption or a label: give one of the two columns.")
    if label is not None:
        return choose(columns, label, LABEL, "label", where), True
    if caption is not None:
        return choose(columns, caption, CAPTION, "caption", where), False
    known = {name.lower(): name for name in reversed(columns)}
    for usual in (CAPTION, LABEL):
        for name in usual:
            if name in known:
                return known[name], usual is LABEL
    return choose(columns, None, CAPTION, "caption", where), False


def texts(value: Any, where: str = "it") -> list[str]:
    """Return the texts of a cell, with single blanks; "" if it is empty. Raise UsageError for bytes
    that are not text."""
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in texts(part, where) if one] or [""]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return [text(value if isinstance(value, bytes) or value is None else _plain(value), where)]


def _plain(value: Any) -> str | None:
    return None if value != value else str(value)  # NaN stands for a missing number


def place(image: Any, folder: Path, where: str, spill: Spill) -> Row:
    """Return the row, without a text, of a cell that holds the path of an image, or the image."""
    name, content = image, None
    if isinstance(image, dict):
        name, content = image.get("path"), image.get("bytes")
    elif isinstance(image, bytes):
        name, content = None, image
    if content is not None:
        return Row(f"{where} ({name})" if name else where, "", spill.file, *spill.add(content))
    name = name.strip() if isinstance(name, str) else ""
    if not name:
        return Row(where, "")
    path = name if name.lower().startswith(URLS) else located(name, folder)
    return Row(path, "", path)
