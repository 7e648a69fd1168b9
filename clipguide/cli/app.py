"""Define the program `clipguide`: its commands, and its exit codes after an error."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import ClipguideError, UsageError, out_of_memory
from . import config, console
from .cache import cache
from .classify import classify
from .doctor import doctor
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
from .verb import Verb

NO_MEMORY = (
    "clipguide: there is not enough memory; a smaller --size needs less, or for generate one "
    "image at a time (--exact) or --decoder linear."
)


class _Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        verb = self.commands.get(args[0]) if args else None
        if isinstance(verb, Verb) and verb.asks_help(args[1:]):  # before any option is converted
            typer.echo(verb.get_help(verb.context_class(verb, info_name=args[0], parent=ctx)))
            ctx.exit()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = console.of_values(error.message)
            if source := config.source_of(error):
                error.message = f"{error.message.rstrip('.')} ({source})."
            raise
        except ClipguideError as error:
            console.to_stderr(f"clipguide: {console.options_for_names(str(error))}")
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
    help="Steer image generators with CLIP, and score, rank, classify and search images. The "
    "embedded models work offline.",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(cls=Verb)(generate)
app.command(cls=Verb)(optimize)
app.command(cls=Verb)(replay)
app.command(cls=Verb)(plot)
app.command(cls=Verb)(score)
app.command(cls=Verb)(rerank)
app.command(cls=Verb)(classify)
app.command(cls=Verb)(embed)
app.command(cls=Verb)(index)
app.command(cls=Verb)(search)
app.command(cls=Verb)(duplicates)
app.command(cls=Verb)(ui)
app.command(cls=Verb)(export)
app.command(cls=Verb)(finetune)
app.command(cls=Verb)(invert)
app.add_typer(cache, name="cache")
app.command(cls=Verb)(models)
app.command(cls=Verb)(doctor)
app.command(cls=Verb)(config.config)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipguide {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if ctx.invoked_subcommand != "config":
        config.apply(ctx)


def main() -> None:
    """Run the console script. If the disk of its output is full, exit with a message."""
    try:
        app()
    except OSError as error:
        from ..recipe import FULL

        if error.filename is not None or error.errno not in FULL:
            raise
        # otherwise Python flushes stdout again at exit, and fails again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        console.complain(f"The output cannot be written: {error.strerror}.")
        sys.exit(1)
