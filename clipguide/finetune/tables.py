"""Tables of pictures and what is said of them: CSV, TSV, JSONL and parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.files import URLS
from ..errors import UsageError, close_matches
from ..prompts import shorten

IMAGE = ("image", "filepath", "file_path", "image_path", "path", "file_name", "filename", "file")
CAPTION = ("caption", "text", "title", "description", "prompt")
LABEL = ("label", "class", "category", "class_name", "label_name")
OPTIONS = {"caption": "caption_column", "label": "label_column", "image": "image_column"}
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """A picture and what a source says of it: a class's name or a caption, "" where it says none.

    The bytes are `content`, or those of `file`, from `offset` on if it is an archive.
    """

    path: str
    text: str
    file: str = ""
    offset: int = -1
    size: int = -1
    content: bytes | None = field(default=None, repr=False)


@dataclass
class Listing:
    """What a source holds: rows whose texts are class names (`classes`) or captions; pictures that
    are in no class's folder; folders without pictures; the names of numbered classes, if told."""

    rows: list[Row]
    classes: bool
    passed: list[str] = field(default_factory=list)
    hollow: list[str] = field(default_factory=list)
    names: Sequence[str] | None = None


def read(
    file: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
) -> Listing:
    """The rows of a table, with paths relative to its folder; columns that are not named are found
    by their usual names, a caption before a label. A list of captions makes as many rows.

    In a parquet a picture may be the bytes themselves, as the hub's data sets have them: a struct
    of bytes and path. UsageError for a table that cannot be read or a column that is not there.
    """
    kind = file.suffix.lower()
    names = None
    try:
        if kind == ".parquet":
            columns, rows, features = _parquet(file)
        else:
            columns, rows = _lines(file, kind)
            features = {}
    except UnicodeDecodeError:
        raise UsageError(
            f"{file} is not UTF-8 text: save it as UTF-8 (iconv -f latin1 -t utf-8)."
        ) from None
    except (OSError, csv.Error) as error:
        words = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise UsageError(f"{file} cannot be read: {words}.") from None
    if not rows:
        raise UsageError(f"{file} has no rows.")
    if odd := next((number for number, row in enumerate(rows, start=1) if None in row), None):
        raise UsageError(
            f"Row {odd} of {file} has more cells than there are columns: put texts with a "
            "separator in them into double quotes."
        )
    image = choose(columns, image_column, IMAGE, "image", str(file))
    text, classes = text_column(columns, caption_column, label_column, str(file))
    if classes:
        names = features.get(text)
    found = [
        place(row.get(image), one, file.parent, f"{file}, row {number}")
        for number, row in enumerate(rows, start=1)
        for one in texts(row.get(text))
    ]
    return Listing(found, classes, names=names)


def text_column(
    columns: Sequence[str], caption: str | None, label: str | None, where: str
) -> tuple[str, bool]:
    """The column that says what is in a picture, and whether it names a class. UsageError if there
    is none, or both are asked for."""
    if caption is not None and label is not None:
        raise UsageError("A picture has a caption or a label: give one of the two columns.")
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


def choose(
    columns: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, where: str
) -> str:
    """The column that is wanted, or the first with a usual name. UsageError if it is not there."""
    if wanted is not None:
        if wanted not in columns:
            raise UsageError(f"{where} has no column {wanted!r}.{close_matches(wanted, columns)}")
        return wanted
    known = {name.lower(): name for name in reversed(columns)}
    for name in usual:
        if name in known:
            return known[name]
    have = ", ".join(shorten(name, 40) for name in columns[:12])
    other = " and no label either" if what == "caption" else ""
    raise UsageError(
        f"{where} has no column {what!r}, or one of another usual name ({', '.join(usual[1:])})"
        f"{other}: name it by {OPTIONS[what]}. Its columns: {have}."
    )


def texts(value: Any) -> list[str]:
    """What a cell says, blanks made one; "" if it is empty."""
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in texts(one) if text] or [""]
    if value is None or value != value:  # NaN of a number that is missing
        return [""]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return [" ".join(str(value).replace("\0", " ").split())]


def place(image: Any, text: str, folder: Path, where: str) -> Row:
    """The row of a cell that says where a picture is, or is the picture."""
    if isinstance(image, dict):
        path, content = image.get("path"), image.get("bytes")
        if content is not None:
            return Row(f"{where} ({path})" if path else where, text, content=content)
        image = path
    if isinstance(image, bytes):
        return Row(where, text, content=image)
    name = image.strip() if isinstance(image, str) else ""
    if not name:
        return Row(where, text)
    path = name if name.lower().startswith(URLS) else os.path.join(folder, name)
    return Row(path, text, path)


def _lines(file: Path, kind: str) -> tuple[list[str], list[dict]]:
    """The columns and rows of a file of text."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if kind == ".jsonl":
            rows = list(_json_rows(stream, file))
            return list(dict.fromkeys(name for row in rows for name in row)), rows
        head = stream.readline()
        between = DELIMITERS[kind]
        if kind == ".csv" and "," not in head:  # as Excel writes where the comma is decimal
            between = next((sign for sign in ";\t" if sign in head), between)
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=between, strict=True)
        columns = [name for name in reader.fieldnames or [] if name]
        return columns, list(reader)


def _json_rows(stream: Iterable[str], file: Path) -> Iterator[dict]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UsageError(f"There is no JSON object in line {number} of {file}.")
        yield row


def _parquet(file: Path) -> tuple[list[str], list[dict], dict[str, list[str]]]:
    """The columns and rows of a parquet, and the names of those that the hub's data sets number."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet needs pyarrow: pip install pyarrow, or save a .csv.") from None
    try:
        table = pa.parquet.read_table(file)
    except pa.ArrowException as error:
        words = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise UsageError(f"{file} cannot be read: {words}.") from None
    try:
        about = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: kind["names"] for name, kind in about.items() if "names" in kind}
    except (KeyError, TypeError, ValueError, AttributeError):
        features = {}
    return table.column_names, table.to_pylist(), features
