"""clipguide cache: show what the cache of embeddings holds, or empty it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import ReportAsJson

cache = typer.Typer(help="Show or clear the cache of embeddings.", no_args_is_help=True)
File = Annotated[
    Path | None,
    typer.Option("--cache", metavar="FILE", help="The file of the cache. [default: "
    "$CLIPGUIDE_CACHE, or a file in ~/.cache/clipguide]"),
]


@cache.command()
def info(
    path: File = None,
    as_json: ReportAsJson = False,
) -> None:
    """Show the file, the size and the content of the cache."""
    from ..engine import Cache, default_path

    if not (path or default_path()).exists():
        facts = {"path": str(path or default_path()), "bytes": 0, "files": 0, "models": []}
    else:
        facts = Cache(path).info()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console.tell(f"{facts['path']}  {facts['bytes'] / 1e6:.1f} MB, {facts['files']} files")
    for model in facts["models"]:
        digest, *settings = model["key"].split()
        console.tell(f"  {model['name']}  {digest[:12]} {' '.join(settings)}: {model['vectors']}")


@cache.command()
def clear(path: File = None) -> None:
    """Remove all embeddings. The images stay as they are."""
    from ..engine import Cache, default_path

    place = path or default_path()
    if place.exists():
        Cache(path).clear()
    console.tell(f"{place} is empty.")
