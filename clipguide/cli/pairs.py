"""Read a file of images, each with its own text, in parts.

Shapes: B pairs, D the width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..prompts import check_text
from ..tables import CAPTION, IMAGE, choose, located, open_table, text
from . import console

if TYPE_CHECKING:
    import torch

    from .embedding import Pictures

PART = 1024  # pairs per part


@dataclass(frozen=True)
class Pair:
    """The path of an image, its text, and its reference texts."""

    image: str
    text: str
    references: tuple[str, ...] = ()


def read(file: Path, *, references: bool) -> Iterator[Pair]:
    """Return the rows of a table: `image`, `text` and, if it is needed, `reference`, which may be a
    list. Paths are relative to the folder of the table.

    Raises:
        UsageError: as `open_table`; a column is missing; a row has an empty cell (the message names
            its line).
    """
    table = open_table(file)
    columns = {
        "image": choose(table.columns, None, IMAGE, "image", str(file)),
        "text": choose(table.columns, None, ("text", *CAPTION), "text", str(file)),
    }
    if references:
        columns["reference"] = choose(table.columns, None, ("reference",), "reference", str(file))
    for where, row in table.rows():
        values = {what: _texts(row.get(column), what, where) for what, column in columns.items()}
        (image, *more), (said, *others) = values["image"], values["text"]
        if more or others:
            raise UsageError(f"There are several images or texts in {where}: give one of each.")
        yield Pair(located(image, file.parent), said, tuple(values.get("reference", ())))


def embed(rows: Iterable[Pair], pictures: Pictures) -> Iterator[tuple[list[Pair], torch.Tensor]]:
    """Yield the pairs whose image is readable, in parts, with their unit vectors_BD. Report each
    unreadable image once."""
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


def _texts(value: Any, what: str, where: str) -> list[str]:
    """Return the texts of a cell. Raise UsageError if one is empty, or not a text."""
    found = [text(one, where) for one in (value if isinstance(value, list) else [value])]
    if not found or not all(found):
        raise UsageError(f"The {what} is empty, or no text, in {where}.")
    for one in found:
        check_text(one)
    return found
