"""Rows of scores on stdout, as a table, CSV, JSON or JSON lines, each as soon as it is there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from enum import Enum
from typing import Annotated

import typer

from . import console

WIDTH = 12  # of a column of the table


class Format(str, Enum):
    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


Printed = Annotated[Format, typer.Option("--format", help="How the rows are printed.")]


class Rows:
    """Prints rows in one format: the head of a CSV at once, and of a table if `head` is one."""

    def __init__(self, format: Format, columns: Sequence[str], *, head: str | None = None) -> None:
        self._format, self._count = format, 0
        if format is Format.csv:
            console.tell(_csv(columns))
        elif format is Format.table and head is not None:
            console.tell(console.one_line(head))

    def add(self, *, cells: Sequence[object], line: str, record: dict[str, object]) -> None:
        """Print a row: its cells in a CSV, the line in a table, the record in JSON."""
        if self._format is Format.csv:
            console.tell(_csv(cells))
        elif self._format is Format.table:
            console.tell(console.one_line(line))
        else:
            lines = self._format is Format.jsonl
            start = "" if lines else ",\n" if self._count else "[\n"
            typer.echo(start + json.dumps(record), nl=lines)
        self._count += 1

    def close(self) -> None:
        """Print what comes after the last row."""
        if self._format is Format.json:
            typer.echo("\n]" if self._count else "[]")


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().removesuffix("\n")
