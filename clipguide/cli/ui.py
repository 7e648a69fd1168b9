"""clipguide ui: the page in the browser."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from ..errors import UsageError
from . import console
from .index import Db
from .options import Device


def ui(
    db: Db = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: on every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0: any that is free.")] = 7860,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="What draws: mini, or a diffusers folder or name.")
    ] = "mini",
    clip: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The CLIP that steers and ranks. [default: the model's]"),
    ] = None,
    device: Device = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open the browser.")
    ] = False,
) -> None:
    """Generate, search and rerank on a page in the browser.

    It listens on this machine alone, asks no other host, and serves the pictures of the index and
    what is uploaded to it, and no other file. Ctrl+C ends it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("The page needs Gradio: pip install 'clipguide[ui]'.")
    with console.plain_speech(drawing=True):
        from ..ui import Models, listen, serve
        from ..ui.server import is_local
        from .generate import best_device

        sock = listen(host, port)
        if not is_local(host):
            console.complain(
                f"whoever reaches {host} can search the pictures and draw: the page has no "
                "password."
            )

        def ready(address: str) -> None:
            typer.echo(address)
            if not no_browser:
                typer.launch(address)

        models = Models(db=db, model=model, clip=clip, device=device or best_device())
        serve(models, sock, host=host, ready=ready)
