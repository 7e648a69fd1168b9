"""Read tables of captions in parts: CSV, TSV, JSONL and parquet; and captions in files next to
images."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UsageError, close_matches
from .prompts import shorten

IMAGE = ("image", "filepath", "file_path", "image_path", "path", "file_name", "filename", "file")
CAPTION = ("caption", "text", "title", "description", "prompt")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
PART = 1024  # rows of a parquet that are read at a time
LONGEST = 20_000  # largest caption next to an image, in bytes


@dataclass(frozen=True)
class Table:
    """The file and columns of a table. `features` are the names of numbered classes, by column, in
    parquets of the hub."""

    file: Path
    columns: list[str]
    features: dict[str, list[str]] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (where, row) of each row as it is read. `where` is for messages.

        Raises:
            UsageError: a row has more cells than columns (for example because of an unquoted
                comma), or is not a JSON object.
        """
        kind = self.file.suffix.lower()
        with _told(self.file):
            if kind == ".parquet":
                yield from _parquet_rows(self.file)
            elif kind == ".jsonl":
                yield from _json_rows(self.file)
            else:
                yield from _csv_rows(self.file)


def open_table(file: str | os.PathLike) -> Table:
    """Open a table by the suffix of its file. Raise UsageError if the suffix is unknown, or the
    file cannot be read, is not UTF-8 or has no rows."""
    file = Path(file)
    kind = file.suffix.lower()
    if kind not in ENDINGS:
        raise UsageError(f"{file} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")
    with _told(file):
        if kind == ".parquet":
            columns, count, features = _parquet_head(file)
            table, empty = Table(file, columns, features), not count
        elif kind == ".jsonl":
            columns = list(dict.fromkeys(name for _, row in _json_rows(file) for name in row))
            table = Table(file, columns)
            empty = not columns
        else:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                reader = _csv_reader(stream, kind)
                table = Table(file, [name for name in reader.fieldnames or [] if name])
                empty = next(reader, None) is None
    if empty:
        raise UsageError(f"{file} has no rows.")
    return table


def captions(file: str | os.PathLike) -> dict[str, str]:
    r"""Return the captions of a table with the columns path (or another usual name) and caption, by
    the absolute paths of the images. Paths in the table are relative to its folder, with / or \.

    Raises:
        UsageError: as `open_table`; a caption is not a text; an image has two captions.
    """
    table = open_table(file)
    image = choose(table.columns, None, ("path", *IMAGE), "image", str(file))
    caption = choose(table.columns, None, CAPTION, "caption", str(file))
    found: dict[str, str] = {}
    for where, row in table.rows():
        said = text(row.get(caption), where)
        name = text(row.get(image), where)
        if not (name and said):
            continue
        path = located(name, Path(os.path.abspath(table.file.parent)))
        if found.setdefault(path, said) != said:
            raise UsageError(f"{path} has two captions, the second in {where}: keep one.")
    return found


def sidecar(path: str | os.PathLike) -> str | None:
    """Return the caption in the .txt next to an image, with single blanks, or None. A file that is
    not UTF-8 is read in the encoding of Windows."""
    try:
        content = Path(os.path.splitext(path)[0] + ".txt").read_bytes()[:LONGEST]
    except (OSError, ValueError):
        return None
    return said(content)


def said(content: bytes) -> str | None:
    """Return the caption in the first LONGEST bytes of such a .txt."""
    try:
        words = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the limit cut a character
        whole = error.start >= len(content) - 3 and len(content) == LONGEST
        words = content.decode("utf-8-sig" if whole else "cp1252", "replace")
    return _one_line(words) or None


def located(name: str, folder: Path) -> str:
    """Return the path of an image that a table in `folder` names. If there is no such file,
    backslashes separate folders, as on Windows."""
    path = os.path.normpath(os.path.join(folder, name))
    if "\\" in name and os.sep == "/" and not os.path.exists(path):
        path = os.path.normpath(os.path.join(folder, name.replace("\\", "/")))
    return path


def text(value: object, where: str) -> str:
    """Return the text of a cell, with single blanks; "" for an empty cell. Raise UsageError for
    anything else."""
    if value is None or value != value:  # NaN in a parquet is an empty cell
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UsageError(f"A text is not UTF-8 in {where}: save it as UTF-8.") from None
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, (list, tuple)) else f"{type(value).__name__}"
        raise UsageError(f"A text is {kind}, {shorten(str(value))}, in {where}: give it as text.")
    return _one_line(value)


def choose(
    columns: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, where: str
) -> str:
    """Return the named column, or the first with a usual name. Raise UsageError if it does not
    exist."""
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
    others = [name for name in usual if name != what]
    near = next(filter(None, (close_matches(name, columns) for name in usual)), "")
    raise UsageError(
        f"{where} has no column {what!r}, or one of another usual name ({', '.join(others)})"
        f"{other}: {_by(what)}. Its columns: {have}.{near}"
    )


def _by(what: str) -> str:
    if what in ("image", "caption", "label"):
        return f"name it by --{what}-column ({what}_column=)"
    return f"call it {what}"


def _one_line(said: str) -> str:
    return " ".join(said.replace("\0", " ").split())


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Return the fault of a file in a sentence."""
    try:
        yield
    except UnicodeDecodeError:
        raise UsageError(
            f"{file} is not UTF-8 text: save it as UTF-8 (iconv -f latin1 -t utf-8)."
        ) from None
    except (OSError, csv.Error) as error:
        words = str(getattr(error, "strerror", None) or error).rstrip(".")
        words = shorten(" ".join(words.split()), 200)
        raise UsageError(f"{file} cannot be read: {words}.") from None


def _csv_reader(stream: Any, kind: str) -> csv.DictReader:
    head = stream.readline()
    between = DELIMITERS[kind]
    # Excel writes this if the comma is the decimal separator
    if kind == ".csv" and "," not in head:
        between = next((sign for sign in ";\t" if sign in head), between)
    stream.seek(0)
    return csv.DictReader(stream, delimiter=between, strict=True)


def _csv_rows(file: Path) -> Iterator[tuple[str, dict]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = _csv_reader(stream, file.suffix.lower())
        for row in reader:
            where = f"line {reader.line_num} of {file}"
            if None in row:
                raise UsageError(
                    f"There are more cells than columns in {where}: put texts with a separator in "
                    "them into double quotes."
                )
            yield where, row


def _json_rows(file: Path) -> Iterator[tuple[str, dict]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"There is no JSON object in line {number} of {file}.")
            yield f"line {number} of {file}", row


def _parquet(file: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet needs pyarrow: pip install pyarrow, or save a .csv.") from None
    try:
        return pa.parquet.ParquetFile(file, memory_map=True)
    except pa.ArrowException as error:
        raise OSError(str(error)) from None


def _parquet_head(file: Path) -> tuple[list[str], int, dict[str, list[str]]]:
    """Return the columns, the number of rows, and the names of the numbered classes in data sets of
    the hub."""
    found = _parquet(file)
    schema = found.schema_arrow
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: kind["names"] for name, kind in about.items() if "names" in kind}
    except (KeyError, TypeError, ValueError, AttributeError):
        features = {}
    return schema.names, found.metadata.num_rows, features


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict]]:
    found, number = _parquet(file), 0
    import pyarrow as pa

    try:
        for part in found.iter_batches(PART):
            for row in _dicts(part):
                number += 1
                yield f"{file}, row {number}", row
    except pa.ArrowException as error:
        raise OSError(str(error)) from None


def _dicts(part: Any) -> Iterable[dict]:
    """Yield the rows of a batch one by one, so that Python holds the bytes of one image at a time.
    """
    for i in range(part.num_rows):
        yield {name: part.column(k)[i].as_py() for k, name in enumerate(part.schema.names)}
