"""The condition of --where: one SQL expression over an index's columns, and nothing more.

LanceDB reads an expression and ignores what follows it ("width > 5; drop table x" is "width > 5"),
so what a condition may hold is looked at first.
"""

from __future__ import annotations

import re

from ..errors import UsageError
from ..prompts import check_text, shorten
from .store import COLUMNS

LONGEST = 10_000  # characters
TOKEN = re.compile(
    r"(?P<string>'(?:[^']|'')*')|(?P<name>`[^`]*`|\"[^\"]*\")|(?P<word>\w+)|(?P<blank>\s+)"
    r"|(?P<comment>--|/\*)|(?P<sign>.)",
    re.DOTALL,
)
VERBS = frozenset(
    "select insert update delete drop create alter truncate attach copy grant revoke merge union "
    "intersect except into exec execute call set pragma vacuum".split()
)
DATES = ("date", "indexed_at", "mtime")
TYPES = ("date", "timestamp")  # before a literal
DATE = re.compile(r"'\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2})?)?'")
BETWEEN = frozenset("between and in not is".split())  # words that keep to the column before them


def checked(condition: str) -> str:
    """The condition in parentheses, where texts that are dates stand by a column of dates made
    timestamps. UsageError if it is empty, or more than a condition."""
    check_text(condition)
    if not condition.strip():
        raise UsageError("--where is empty: give a condition, as in width > 512.")
    if len(condition) > LONGEST:
        raise UsageError(f"--where is longer than {LONGEST} characters.")
    parts, depth, column, before = [], 0, "", ""
    for match in TOKEN.finditer(condition):
        kind, text = match.lastgroup, match[0]
        depth += {"(": 1, ")": -1}.get(text, 0)
        word = text.strip('`"').lower()
        if text == ";" or kind == "comment" or (kind == "word" and word in VERBS) or depth < 0:
            raise UsageError(
                f"--where is a condition over columns, and nothing more: {shorten(text)!r} in "
                f"{shorten(condition)!r} is not allowed."
            )
        if text in "'\"`":
            raise UsageError(f"--where has a {text} that is not closed: {shorten(condition)!r}.")
        if kind == "string" and column in DATES and DATE.fullmatch(text):
            if before not in TYPES:
                text = f"timestamp {text}"
        elif kind in ("word", "name") and word not in BETWEEN and not word.isdecimal():
            column = column if word in TYPES and _typed(condition, match) else word
        if kind != "blank":
            before = word if kind == "word" else text
        parts.append(text)
    return f"({''.join(parts)})"


def misunderstood(words: str) -> UsageError:
    """The error of a condition that LanceDB does not take, with its parser's words."""
    if field := re.search(r"No field named \"?([^\s\"]+?)\"?\. Valid", words):
        return UsageError(
            f"--where: there is no column {field[1]}; there are {', '.join(COLUMNS)}."
        )
    if parser := re.search(r"\(sql parser error: (.*)\)$", words):
        words = parser[1]
    words = re.sub(r"^Error resolving filter expression.*Invalid user input: ", "", words)
    return UsageError(f"--where is not understood: {words}.")


def _typed(condition: str, match: re.Match) -> bool:
    """Whether a word is the type of the literal that follows it."""
    return condition[match.end() :].lstrip().startswith("'")
