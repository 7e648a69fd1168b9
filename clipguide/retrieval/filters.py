"""The condition of --where: one SQL expression over the columns of an index, and nothing else."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from ..errors import UsageError, close_matches
from ..prompts import check_text, shorten
from .store import COLUMNS

LONGEST = 10_000  # largest length in characters
DATES = ("date", "indexed_at", "mtime")
DATE = re.compile(r"(\d{4})(-\d{2})?(-\d{2})?([ T]\d{2}:\d{2}(:\d{2})?)?")


def checked(condition: str) -> str:
    """Return the condition as LanceDB takes it. A text next to a column of dates becomes a
    timestamp ('2020' is its first moment). Raise UsageError if it is empty, or more than a
    condition."""
    try:
        import sqlglot
        from sqlglot import exp
    except ModuleNotFoundError:
        raise UsageError(
            "--where needs sqlglot, which is not installed: pip install 'clipguide[search]'."
        ) from None
    check_text(condition)
    if not condition.strip():
        raise UsageError("--where is empty: give a condition, as in width > 512.")
    if len(condition) > LONGEST:
        raise UsageError(f"--where is longer than {LONGEST} characters.")
    try:
        found = sqlglot.parse(condition, read=_dialect())
        fine = len(found) == 1 and isinstance(found[0], exp.Condition)
        if not fine or found[0].find(exp.Query, exp.Star, exp.Window, exp.Placeholder):
            raise UsageError(
                f"--where is a condition over columns, and nothing more: {shorten(condition)!r} is "
                "not one."
            )
        for column in list(found[0].find_all(exp.Column)):
            _check_column(column, exp)
        return f"({found[0].sql(dialect=_dialect(), identify=True, comments=False)})"
    except sqlglot.errors.ParseError as error:
        near = " ".join(str(error.errors[0]["highlight"]).split())
        raise UsageError(
            f"--where is not understood at {shorten(near)!r}: give a condition, as in width > 512."
        ) from None
    except sqlglot.errors.TokenError:
        raise UsageError(
            f"--where has a quote that is not closed: {shorten(condition)!r}."
        ) from None
    except RecursionError:
        raise UsageError("--where has too many parentheses.") from None


@cache
def _dialect() -> type:
    """Return the SQL dialect of LanceDB, with names in backticks or double quotes."""
    import sqlglot

    class Lance(sqlglot.Dialect):
        class Tokenizer(sqlglot.Tokenizer):
            IDENTIFIERS = ["`", '"']

    return Lance


def misunderstood(words: str) -> UsageError:
    """Return the error for a condition that LanceDB refuses, with its words."""
    words = re.sub(r"^Error resolving filter expression.*Invalid user input: ", "", words)
    return UsageError(f"--where is not understood: {words}.")


def _check_column(column: Any, exp: Any) -> None:
    """Write a column as the table spells it, and turn texts next to a column of dates into
    timestamps."""
    name = column.name.lower()
    if name not in COLUMNS:
        close = close_matches(name, COLUMNS)
        raise UsageError(f"--where: there is no column {shorten(column.name)}.{close}")
    column.this.set("this", name)
    beside = column.parent
    if name not in DATES or not isinstance(beside, (exp.Binary, exp.In, exp.Between)):
        return
    for literal in list(beside.iter_expressions()):
        if isinstance(literal, exp.Literal) and literal.is_string:
            if not (found := DATE.fullmatch(literal.this)):
                raise UsageError(
                    f"--where compares {name} with {shorten(literal.this)!r}, which is no date: "
                    "write '2024-05-06', or '2024-05-06 07:08'."
                )
            year, month, day, time, _ = found.groups()
            text = f"{year}{month or '-01'}{day or '-01'}{time or ''}"
            literal.replace(exp.cast(exp.Literal.string(text), "TIMESTAMP"))
