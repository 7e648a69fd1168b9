"""clipguide duplicates: which pictures of an index are there more than once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .index import Db

if TYPE_CHECKING:
    from ..retrieval import Group


def duplicates(
    db: Db = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only files of the same content.")] = False,
    threshold: Annotated[
        float, typer.Option(metavar="COSINE", help="From where on two pictures are alike.")
    ] = 0.98,
    contact_sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .png or .html to show them on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the pictures of an index that are there more than once; nothing is deleted.

    Of each group, the largest picture comes first, then its copies, each with its cosine; "same"
    are those of the same content. Groups are parted by blank lines.
    """
    from ..retrieval import duplicates as find
    from ..retrieval import page

    with console.plain_speech():
        if contact_sheet is not None:
            page.check(contact_sheet)
        groups = find(db, near=not exact, threshold=threshold)
        _print(groups, as_json)
        if contact_sheet is not None and groups:
            page.write(contact_sheet, "Duplicates", list(map(_cells, groups)))
            console.complain(f"{contact_sheet} is written.")


def _print(groups: list[Group], as_json: bool) -> None:
    if as_json:
        found = [
            {"paths": g.paths, "sizes": g.sizes, "scores": g.scores, "exact": g.exact}
            for g in groups
        ]
        typer.echo(json.dumps(found, indent=2))
        return
    for number, group in enumerate(groups):
        if number:
            console.tell("")
        for i, (path, score) in enumerate(zip(group.paths, group.scores, strict=True)):
            console.tell(console.one_line(f"{_mark(group, i, score)}  {path}"))
    copies = sum(len(group.paths) - 1 for group in groups)
    console.complain(f"{copies} copies in {len(groups)} groups.")


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
