"""What is said of images: in a table of captions, or in a .txt beside an image, of its name."""

from __future__ import annotations

import csv
import os
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import UsageError
from ..prompts import shorten

GIVEN = -1  # the stamp of a caption from a table
ENDING = ".txt"
LONGEST = 20_000  # bytes of a .txt that are read
NAMES = (("path", "image"), ("caption", "text"))  # of columns


class Captions:
    """The captions of a parquet or CSV of columns path (or image) and caption (or text), paths
    relative to its folder; none without a table. `used` are those of images that were asked for.

    UsageError if the table cannot be read, or has anything but one text for an image.
    """

    def __init__(self, table: str | os.PathLike | None = None) -> None:
        self.table = table
        self.texts = {} if table is None else _read(Path(table))
        self.used: set[str] = set()
        self._home = "" if table is None else os.path.abspath(os.path.dirname(table))

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


def sidecar(path: str) -> str | None:
    """The text of the .txt beside a file."""
    try:
        with open(beside(path), "rb") as stream:
            return text_of(stream.read(LONGEST))
    except OSError:
        return None


def beside(path: str) -> str:
    """The name of the .txt beside a file or URL."""
    return os.path.splitext(path)[0] + ENDING


def text_of(content: bytes) -> str | None:
    """The text of a .txt, in one line."""
    return " ".join(content.decode("utf-8-sig", "replace").replace("\0", " ").split()) or None


def _read(path: Path) -> dict[str, str]:
    table = _open(path)
    columns = []
    for pair in NAMES:
        name = next((name for name in pair if name in table.column_names), None)
        if name is None:
            raise UsageError(f"The captions in {path} need the columns path and caption.")
        kind = str(table.schema.field(name).type)
        if kind not in ("string", "large_string", "string_view", "null"):
            raise UsageError(f"The column {name} of {path} is {kind} and not text: write text.")
        columns.append(table[name].to_pylist())
    found: dict[str, str] = {}
    for name, text in zip(*columns, strict=True):
        if not name or not text or not text.strip():
            continue
        place = _place(os.path.abspath(path.parent), name)
        if place in found:
            raise UsageError(f"{path} has two captions for {shorten(name)}: leave one.")
        found[place] = " ".join(text.split())
    if not found:
        raise UsageError(f"{path} has no captions: each row needs a path and a caption.")
    return found


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            return pa.parquet.read_table(path)
        content = path.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UsageError(
                f"{path} is not UTF-8 (line {line}): save it as UTF-8 and repeat the command."
            ) from None
        heads = content.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode()
        names = next(csv.reader([heads.rstrip("\r")]), [])
        kinds = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        between = pa.csv.ParseOptions(newlines_in_values=True)
        return pa.csv.read_csv(pa.BufferReader(content), parse_options=between,
                               convert_options=kinds)  # fmt: skip
    except FileNotFoundError:
        raise UsageError(f"There is no file of captions {path}.") from None
    except (OSError, pa.ArrowException) as error:
        words = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise UsageError(f"The captions in {path} cannot be read: {words}.") from None


def _place(home: str, name: str) -> str:
    """The file that a table means, by either system's separators."""
    if "\\" in name and os.sep == "/" and not os.path.lexists(os.path.join(home, name)):
        name = PureWindowsPath(name).as_posix()
    return os.path.normpath(os.path.join(home, name))
