"""Serve the page: its socket, and its ASGI application."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Callable

from ..errors import ClipguideError, UsageError
from . import files, network
from .guard import Guard
from .models import Models
from .network import Access


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port of a host. 0 is any free port.

    Raises:
        UsageError: there is no such host.
        ClipguideError: the port is in use or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"A port is a number from 0 to 65535, not {port}.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"There is no host {host}: give an address of this machine.") from None
    sock = socket.socket(family)
    try:
        if os.name == "posix":  # on other systems it would let two programs listen
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ClipguideError(
                f"Port {port} of {host} is in use: choose another, as --port {port % 65535 + 1}, "
                "or --port 0 for any that is free."
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"{host} is no address of this machine: give --host another."
            ) from None
        raise ClipguideError(
            f"The page cannot listen at port {port} of {host} ({error.strerror}): choose another "
            "--port."
        ) from None
    return sock


def application(
    models: Models, folder: str | os.PathLike, *, access: Access | None = None
) -> Guard:
    """Return the page as an ASGI application. Its files lie in `folder`. By default, `access`
    allows this machine only."""
    import gradio as gr
    from fastapi import FastAPI

    from . import page

    blocks = page.build(models, folder)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[],
        show_error=False,
        max_file_size=files.LARGEST,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme(),
        css=page.CSS,
        js=page.PASTE,
    )
    blocks.has_launched = True  # otherwise Gradio would not find the given files
    return Guard(app, folder, access=access or network.access("127.0.0.1"))


def serve(
    models: Models,
    sock: socket.socket,
    *,
    host: str,
    access: Access,
    ready: Callable[[str], None],
) -> None:
    """Serve the page on a socket until Ctrl+C. `ready` is called with the address once the page
    answers."""
    import uvicorn

    address = f"http://{network.url_name(host)}:{sock.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                ready(address)

    with tempfile.TemporaryDirectory(prefix="clipguide-", ignore_cleanup_errors=True) as folder:
        app = application(models, os.path.realpath(folder), access=access)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                Server(config).run(sockets=[sock])
        finally:
            models.stops.stop()
            sock.close()
