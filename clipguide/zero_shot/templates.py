"""Prompt templates and lists of labels, by name or from a file with one per line."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import UsageError, close_matches
from ..prompts import check_text, read_lines, shorten

HERE = Path(__file__).parent
TEMPLATES = ("default", "plain", "seven")
MINI = ("mini", "mini-judge")  # their text encoders learned short names, so `plain` is best


def templates(source: str | os.PathLike | Sequence[str]) -> tuple[str, ...]:
    """Return templates by name, from a file, or as given. Each has one {} for the label.

    "plain" is the label alone. "default" is clipguide's list for any kind of image. "seven" are the
    seven that the authors of CLIP found best on ImageNet (Radford et al. 2021; their notebook
    Prompt_Engineering_for_ImageNet).

    Raises:
        UsageError: the name is unknown, or a line does not have exactly one {}.
    """
    if isinstance(source, (str, os.PathLike)):
        lines = _named(source)
    else:
        lines = list(source)
    if not lines:
        raise UsageError("There are no templates: give one a line, such as: a photo of a {}.")
    for line in lines:
        if line.replace("{}", "", 1).count("{") or line.count("}") != 1 or "{}" not in line:
            raise UsageError(
                f"The template {shorten(line)!r} needs one {{}}, where the label goes, and no "
                "other braces."
            )
    return tuple(lines)


def default_templates(name: str) -> str | tuple[str, ...]:
    """Return the templates for the CLIP `name`: those of the fine-tuning for a folder of clipguide,
    "plain" for mini and its ensembles (measured by `python -m benchmarks.none_of_these names`), and
    "default" for others."""
    try:
        facts = json.loads((Path(name) / "finetune.json").read_text())
        return templates([str(line) for line in facts["templates"]])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    parts = [part.split("*")[-1].split("@")[0].split("~")[0].strip() for part in name.split("+")]
    return "plain" if all(part in MINI for part in parts) else "default"


def as_labels(labels: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return each label with its texts: itself and its synonyms.

    Raises:
        UsageError: there are no labels, one is empty, or some are equal.
    """
    if isinstance(labels, str):
        raise UsageError("labels is a list of strings, not one string.")
    pairs = [
        (label, (label, *labels[label]) if isinstance(labels, Mapping) else (label,))
        for label in labels
    ]
    return _checked(pairs)


def read_labels(source: str | os.PathLike) -> dict[str, tuple[str, ...]]:
    """Return the labels of "a, b, c", or of a UTF-8 file with one label per line, each perhaps with
    synonyms: `cat: kitten, tabby`. Blank lines, and lines that begin with #, are skipped.

    A text without a comma that is the path of a file is that file. Raises the errors of
    `as_labels`.
    """
    text = os.fspath(source)
    if isinstance(source, str) and ("," in text or not _is_file(text)):
        check_text(text)
        if "," not in text and Path(text).suffix in (".txt", ".csv"):
            raise UsageError(f"There is no file of labels {text}.")
        words = [word.strip() for word in text.split(",")]
        return _checked((word, (word,)) for word in words if word or len(words) == 1)
    return _checked(_with_synonyms(line) for line in read_lines(text, what="labels", comments=True))


def _named(source: str | os.PathLike) -> list[str]:
    if source == "plain":
        return ["{}"]
    if source in TEMPLATES:
        return read_lines(HERE / f"{source}.txt", what="templates", comments=True)
    if isinstance(source, str) and "{" in source:
        return [source]
    if isinstance(source, str) and not _is_file(source):
        raise UsageError(
            f"There are no templates {shorten(source)!r}, nor such a file."
            f"{close_matches(source, TEMPLATES)}"
        )
    return read_lines(source, what="templates", comments=True)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # the name is too long, or has a zero byte
        return False


def _with_synonyms(line: str) -> tuple[str, tuple[str, ...]]:
    label, _, rest = line.partition(":")
    label = label.strip()
    synonyms = (word.strip() for word in rest.split(","))
    return label, tuple(dict.fromkeys([label, *(word for word in synonyms if word)]))


def _checked(pairs: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    pairs = list(pairs)
    if not pairs:
        raise UsageError("There are no labels: give at least two, such as: cat, dog.")
    for _, texts in pairs:
        for text in texts:
            check_text(text)
            if not text.strip():
                raise UsageError("A label is empty: give each a name.")
    twice = [label for label, count in Counter(label for label, _ in pairs).items() if count > 1]
    if twice:
        names = ", ".join(repr(shorten(label)) for label in twice[:5])
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise UsageError(f"Labels that repeat: {names}{more}. Give each once.")
    return dict(pairs)
