"""clipguide models: list the embedded models."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the embedded models: sizes, licences, figures."""
    from .. import mini

    found = [describe(name) for name in mini.MODELS]
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for model in found:
        typer.echo(f"{model['name']}: {model['task']}")
        typer.echo(f"  {model['bytes'] / 1e6:.1f} MB, {model['licence']}, {model['path']}")
        typer.echo(f"  trained on {model['data']}")
        for figure, value in model["figures"].items():
            typer.echo(f"  {figure}: {value}")


def describe(name: str) -> dict:
    """What `models --json` says of one embedded model; the words are its card's."""
    from .. import mini

    card = mini.card(name)
    return {
        "name": name,
        "path": str(mini.path(name)),
        "bytes": sum(file.stat().st_size for file in mini.path(name).rglob("*") if file.is_file()),
        **{field: card[field] for field in ("licence", "task", "data", "figures")},
    }
