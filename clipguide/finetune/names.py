"""The names of classes that folders or tables number."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from .tables import Listing

Names = Mapping[str, str] | Sequence[str] | os.PathLike
CLASSES = "classes.txt"
_NUMBER = re.compile(r"n?\d+")  # number of a class, or a WordNet offset as in ImageNet's folders


def is_number(text: str) -> bool:
    """Return whether a text is only a number, and so names nothing."""
    return _NUMBER.fullmatch(text) is not None


def spoken(folder: str) -> str:
    """Return the name of a folder with blanks instead of underscores."""
    return " ".join(folder.replace("_", " ").split())


def give(listing: Listing, names: Names | None, source: Path) -> Listing:
    """Return the listing with names instead of numbers. Raise UsageError if there are only numbers.
    """
    found = sorted({row.text for row in listing.rows if row.text})
    numbered = all(map(is_number, found))
    given = names
    if given is None and numbered:
        beside = [folder / CLASSES for folder in (source, source.parent)]
        given = next((file for file in beside if file.is_file()), None)
        if given is None and not all(map(is_number, listing.names or ["0"])):
            given = listing.names
    if given is None:
        if numbered:
            raise UsageError(
                f"The classes of {source} are numbers ({', '.join(found[:3])}…), from which a "
                f"CLIP's text tower learns nothing: give their names, or put a {CLASSES} beside it."
            )
        return listing
    known = _by_label(given, found)
    if missing := [text for text in found if not known.get(_key(text))]:
        raise UsageError(
            f"The {len(known)} names have none for the class {missing[0]!r}: lists count from 0, "
            "and files may have a class and its name in each line."
        )
    made = [replace(row, text=known.get(_key(row.text), "")) for row in listing.rows]
    return replace(listing, rows=made)


def _by_label(names: Names, found: list[str]) -> dict[str, str]:
    """Return the name of each label."""
    if isinstance(names, (str, os.PathLike)):
        names = _read_names(Path(names), found)
    if not isinstance(names, Mapping):
        names = dict(enumerate(names))
    return {_key(str(label)): " ".join(str(name).split()) for label, name in names.items()}


def _read_names(file: Path, found: list[str]) -> Names:
    """Return the names in a file: a JSON list or object, or lines with a name, or with a label and
    a name."""
    try:
        content = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            return json.loads(content)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "it is not JSON or not UTF-8"
        raise UsageError(f"The names in {file} cannot be read: {words}.") from None
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    pairs = [re.split(r"[\s,:]+", line, maxsplit=1) for line in lines]
    labelled = {_key(pair[0]): pair[1] for pair in pairs if len(pair) == 2}
    return labelled if {_key(text) for text in found} <= set(labelled) else lines


def _key(label: str) -> str:
    """Return a label; a number without its leading zeros."""
    return str(int(label)) if label.isdecimal() else label
