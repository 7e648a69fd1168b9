"""The program `clipguide`: its commands, and how it ends when something goes wrong."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import ClipguideError, UsageError, out_of_memory
from .cache import cache
from .classify import classify
from .duplicates import duplicates
from .embed import embed
from .export import export
from .finetune import finetune
from .generate import generate
from .index import index
from .invert import invert
from .models import models
from .optimize import optimize
from .plot import plot
from .replay import replay
from .rerank import rerank
from .score import score
from .search import search
from .ui import ui

NO_MEMORY = (
    "clipguide: there is not enough memory; a smaller --size needs less, or for generate one "
    "picture at a time (--exact) or --decoder linear."
)


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ClipguideError as error:
            typer.echo(f"clipguide: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            typer.echo(NO_MEMORY, err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("clipguide: stopped; what was finished is kept.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="clipguide",
    help="Steers image generators with CLIP, and scores, ranks and names pictures. Works offline "
    "on the models that it ships.",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(generate)
app.command()(optimize)
app.command()(replay)
app.command()(plot)
app.command()(score)
app.command()(rerank)
app.command()(classify)
app.command()(embed)
app.command()(index)
app.command()(search)
app.command()(duplicates)
app.command()(ui)
app.command()(export)
app.command()(finetune)
app.command()(invert)
app.add_typer(cache, name="cache")
app.command()(models)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipguide {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    app()
