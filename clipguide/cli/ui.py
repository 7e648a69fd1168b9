"""clipguide ui: the page in the browser."""

from __future__ import annotations

import importlib.util
import os
from typing import Annotated

import typer

from ..errors import UsageError
from . import console
from .index import Db
from .options import KEY, Device, Question, Reward


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
    reward: Reward = None,
    question: Question = "",
    device: Device = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="CLIPGUIDE_AUTH",
            help="What the browser asks for. Others may read it on the way: put HTTPS before it.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which others ask for the page, such as pictures.lan; repeatable.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open the browser.")
    ] = False,
) -> None:
    """Generate, search and rerank on a page in the browser.

    It listens on this machine alone, asks no other host, and serves the images of the index and
    what is uploaded to it, and no other file. With --host others reach it, by --auth or under the
    names of --allow-host. Each --reward can be chosen on the page, and no other. Ctrl+C ends it.
    """
    from ..ui import network

    access = network.access(host, auth=auth, allow=allow_host or ())
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("The page needs Gradio: pip install 'clipguide[ui]'.")
    with console.plain_speech(drawing=True):
        from ..ui import Models, listen, serve
        from .generate import best_device

        sock = listen(host, port)
        if not network.is_local(host) and auth is None:
            console.complain(
                f"whoever reaches {host} by one of those names can search and draw: the page has "
                "no password."
            )

        def ready(address: str) -> None:
            typer.echo(address)
            if not no_browser:
                typer.launch(address)

        if reward:
            from ..rewards import wanted

            for text in reward:
                wanted(text)  # said now, not when the first image is drawn
        models = Models(
            db=db,
            model=model,
            clip=clip,
            device=device or best_device(),
            rewards=tuple(reward or ()),
            question=question,
            key=os.environ.get(KEY, ""),
        )
        serve(models, sock, host=host, access=access, ready=ready)
