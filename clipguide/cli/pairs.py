"""A file of pictures, each with a text of its own, read a part at a time.

Shapes: B pairs, D the width of the embedding.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, close_matches
from ..prompts import check_text
from . import console

if TYPE_CHECKING:
    import torch

    from .embedding import Pictures

PART = 1024  # pairs at a time
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Pair:
    """An image's path, its text, and the texts to compare that with."""

    image: str
    text: str
    references: tuple[str, ...] = ()


def read(file: Path, *, references: bool) -> Iterator[Pair]:
    """The rows of a .csv or .tsv with a head, or of a .jsonl: `image`, `text` and, if they are
    asked for, `reference`, which in a .jsonl may be a list. Paths are relative to its folder.

    UsageError for a file that is not there or not UTF-8, another ending, a column that is missing,
    and a row that is empty in one of them, by its line.
    """
    kind = file.suffix.lower()
    if kind not in (*DELIMITERS, ".jsonl"):
        raise UsageError(f"{file} must end in .csv, .tsv or .jsonl.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = _json_rows(stream) if kind == ".jsonl" else _csv_rows(stream, DELIMITERS[kind])
            for line, row in rows:
                yield _pair(row, f"line {line} of {file}", file.parent, references)
    except UnicodeDecodeError:
        raise UsageError(
            f"{file} is not UTF-8 text: save it as UTF-8 (iconv -f latin1 -t utf-8)."
        ) from None
    except (OSError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from None


def embed(rows: Iterable[Pair], pictures: Pictures) -> Iterator[tuple[list[Pair], torch.Tensor]]:
    """Pairs whose picture could be read, a part at a time, and their unit vectors_BD. Of each that
    could not it is told once."""
    import torch

    rows, told = iter(rows), set()
    while part := list(islice(rows, PART)):
        vectors: dict[str, torch.Tensor] = {}
        wanted = [path for path in dict.fromkeys(row.image for row in part) if path not in told]
        for embedded in pictures.engine.embed(wanted):
            if embedded.error is None:
                vectors[embedded.path] = embedded.unit_D
            else:
                told.add(embedded.path)
                console.complain(embedded.error)
        good = [row for row in part if row.image in vectors]
        pictures.good += len(good)
        pictures.bad += len(part) - len(good)
        if good:
            yield good, torch.stack([vectors[row.image] for row in good])


def _csv_rows(stream: Iterable[str], delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(stream, delimiter=delimiter)
    for row in reader:
        yield reader.line_num, row


def _json_rows(stream: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _pair(row: Any, where: str, folder: Path, references: bool) -> Pair:
    if not isinstance(row, dict):
        raise UsageError(f"There is no JSON object in {where}.")
    columns = ("image", "text", "reference") if references else ("image", "text")
    values = {}
    for column in columns:
        if column not in row:
            names = [str(name) for name in row if name]
            raise UsageError(
                f"There is no column {column!r} in {where}.{close_matches(column, names)}"
            )
        found = row[column] if isinstance(row[column], list) else [row[column]]
        if not found or not all(isinstance(one, str) and one.strip() for one in found):
            raise UsageError(f"The {column} is empty, or no text, in {where}.")
        values[column] = found
    for text in chain(*values.values()):
        check_text(text)
    image, text = values["image"][0], values["text"][0]
    return Pair(os.path.join(folder, image), text, tuple(values.get("reference", ())))
