"""clipguide duplicates: find images that an index has more than once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import console
from .index import Db
from .rows import Format, Printed, Rows

if TYPE_CHECKING:
    from ..retrieval import Group


def duplicates(
    db: Db = None,
    exact: Annotated[
        bool, typer.Option("--identical", help="List only files with the same content.")
    ] = False,
    duplicate: Annotated[
        float,
        typer.Option(
            metavar="COSINE",
            help="The cosine similarity from which two images count as duplicates.",
        ),
    ] = 0.98,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .png or .html file that shows the results."),
    ] = None,
    format: Printed = Format.text,
) -> None:
    """List images that an index has more than once.

    Nothing is deleted. In each group the largest image comes first. Its copies follow, each with
    its cosine similarity, or "same" for the same content. Blank lines separate the groups.
    """
    from ..retrieval import page, places

    if not 0 < duplicate <= 1:
        raise UsageError(f"--duplicate is a cosine above 0 and at most 1, not {duplicate}.")
    if contact_sheet is not None:
        page.check(contact_sheet)
    places.check_index(places.default_path() if db is None else db)
    with console.plain_speech():
        from ..retrieval import duplicates as find

        groups = find(db, near=not exact, threshold=duplicate)
        _print(groups, format, None if exact else duplicate)
        if contact_sheet is not None and groups:
            page.write(contact_sheet, "Duplicates", list(map(_cells, groups)))
            console.complain(f"{contact_sheet} is written.")


def _print(groups: list[Group], format: Format, threshold: float | None) -> None:
    columns = ["group", "path", "size", "score", "exact"]
    rows = Rows(format, columns)
    for number, group in enumerate(groups, start=1):
        if number > 1 and format is Format.text:
            console.tell("")
        known = zip(group.paths, group.sizes, group.scores, strict=True)
        for i, (path, size, score) in enumerate(known):
            cells = [number, path, size, score, group.exact]
            line = f"{_mark(group, i, score)}  {path}"
            rows.add(cells=cells, line=line, record=dict(zip(columns, cells, strict=True)))
    rows.close()
    copies = sum(len(group.paths) - 1 for group in groups)
    by = "" if threshold is None else f" or a cosine of at least {threshold:g} with it"
    console.complain(
        f"{copies} copies in {len(groups)} groups: each is of the content of the first of its "
        f"group{by}."
    )


def _mark(group: Group, place: int, score: float) -> str:
    return "first " if not place else "same  " if group.exact else f"{score:.4f}"


def _cells(group: Group) -> tuple[str, list[tuple[str, str, bytes | None]]]:
    heading = "The same content" if group.exact else "Nearly the same"
    rows = zip(group.paths, group.sizes, group.scores, group.thumbnails, strict=True)
    cells = [
        (path, f"{_mark(group, i, score).strip()}, {size / 1e3:.0f} kB", small)
        for i, (path, size, score, small) in enumerate(rows)
    ]
    return heading, cells
