"""clipguide ui: serve the page in the browser."""

from __future__ import annotations

import importlib.util
import os
from typing import Annotated

import typer

from ..errors import UsageError
from . import console
from .index import Db
from .options import KEY, Device, OfferBy, Question


def ui(
    db: Db = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="The address to listen on; 0.0.0.0 is every network."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="The port; 0 is any free one.")] = 7860,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The generator: mini, a folder in diffusers format, or a model of the Hugging "
            "Face hub such as stabilityai/sdxl-turbo.",
        ),
    ] = "mini",
    clip: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The CLIP that steers and ranks. [default: to steer, "
        "mini for the embedded generator, else that of the model's family; to rank, mini]"),
    ] = None,
    reward: OfferBy = None,
    question: Question = "",
    device: Device = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="CLIPGUIDE_AUTH",
            help="The name and password that the browser asks for. They travel in clear text: put "
            "HTTPS in front of the page.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which other machines open the page, such as images.lan. Repeatable.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open the browser.")
    ] = False,
) -> None:
    """Open a page in the browser to generate, search and rank.

    Only this machine can open the page, and the page contacts no other host. It shows the images of
    the index and what you upload, and no other file. To let other machines open it, give --host,
    and --auth or --allow-host. Only the rewards that you give with --reward are offered. Ctrl+C
    stops it.
    """
    from ..ui import network

    access = network.access(host, auth=auth, allow=allow_host or ())
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("The page needs Gradio: pip install 'clipguide[ui]'.")
    with console.plain_speech(drawing=True):
        from ..ui import Models, listen, serve
        from .values import best_device

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
                wanted(text)  # fail now, not at the first image
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
