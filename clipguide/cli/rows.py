"""Print rows of scores to stdout, as text, CSV, TSV, JSON or JSON lines, each row at once."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from enum import Enum
from typing import Annotated

import typer

from ..errors import UsageError
from . import console

WIDTH = 12  # of a column of the text table


class Format(str, Enum):
    text = "text"
    csv = "csv"
    tsv = "tsv"
    json = "json"
    jsonl = "jsonl"
    paths = "paths"  # for pipes: one path per line
    paths0 = "paths0"  # a zero byte after each path, for xargs -0


ENDS = {Format.paths: b"\n", Format.paths0: b"\0"}
SEPARATORS = {Format.csv: ",", Format.tsv: "\t"}
Printed = Annotated[
    Format,
    typer.Option(
        "--format",
        help="The format of the rows. paths: only the paths, one a line. paths0: the same with a "
        "zero byte after each, for xargs -0. --json is short for --format json, -0 for paths0.",
    ),
]


class Rows:
    """Print rows in one format. A CSV or TSV begins with its header; text begins with `head` if
    there is one."""

    def __init__(self, format: Format, columns: Sequence[str], *, head: str | None = None) -> None:
        self._format, self._count = format, 0
        if format in SEPARATORS:
            console.tell(_separated(columns, SEPARATORS[format]))
        elif format is Format.text and head is not None:
            console.tell(console.one_line(head))

    def add(self, *, cells: Sequence[object], line: str, record: dict[str, object]) -> None:
        """Print a row: the cells in a CSV or TSV, the line as text, the record in JSON."""
        if self._format in SEPARATORS:
            console.tell(_separated(cells, SEPARATORS[self._format]))
        elif self._format is Format.text:
            console.tell(console.one_line(line))
        elif self._format in ENDS:
            if "path" not in record:
                raise UsageError("These rows have no paths: choose another --format.")
            typer.echo(os.fsencode(str(record["path"])) + ENDS[self._format], nl=False)
        else:
            lines = self._format is Format.jsonl
            start = "" if lines else ",\n" if self._count else "[\n"
            typer.echo(start + json.dumps(record), nl=lines)
        self._count += 1

    def close(self) -> None:
        """Print what follows the last row."""
        if self._format is Format.json:
            typer.echo("\n]" if self._count else "[]")


def _separated(cells: Sequence[object], separator: str) -> str:
    """Return a line of a CSV or TSV. Numbers have six digits after the point."""
    line = io.StringIO()
    rounded = [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells]
    csv.writer(line, delimiter=separator, lineterminator="\n").writerow(rounded)
    return line.getvalue().removesuffix("\n")
