"""The server of the page: what may be asked of it, and by whom.

Gradio's own server answers to much more than this page needs. A Guard stands before it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from ..errors import ClipguideError, UsageError
from . import files
from .models import Models

API = "/gradio_api/"
READ = ("/assets/", "/static/", "/svelte/", f"{API}heartbeat/")  # and what is below
PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
PAGES |= {f"{API}{name}" for name in ("queue/data", "upload_progress", "startup-events", "info")}
WRITE = {f"{API}{name}" for name in ("queue/join", "run/predict", "cancel", "reset", "upload")}
FILE = f"{API}file="
TOGETHER = 256 << 20  # bytes of one request's uploads
ASKED = 1 << 20  # bytes of any other request
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' "
    "'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; font-src 'self' "
    "data:; worker-src 'self' blob:; media-src 'self' blob:; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """An ASGI application that passes on what the page needs and refuses all else in a sentence.

    Files are those in `folder` alone, links and dots followed, in what is asked for and in what is
    sent. Answers tell the browser to ask no other host. `hosts` are the names under which the page
    is asked for, so that no other page can have a name of its own lead here; None for any.
    """

    def __init__(
        self, app: Callable, folder: str | os.PathLike, *, hosts: frozenset[str] | None = None
    ) -> None:
        self.app, self.folder, self.hosts = app, os.fspath(folder), hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in
                   reversed(scope["headers"])}  # fmt: skip
        refused = self._refused(scope, headers)
        if refused is None and _is_json(scope):
            refused, receive = await self._read(receive)
        if refused is not None:
            await _answer(send, *refused)
            return

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_encoded(HEADERS)]}
            await send(message)

        await self.app(scope, receive, guarded)

    def _refused(self, scope: dict, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, if a request is not one of the page's."""
        path, verb = scope["path"], scope["method"]
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            return 403, "This page does not go by that name."
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return 403, "Another page may not ask this one."
        if verb in ("GET", "HEAD"):
            if path.startswith(FILE):
                if files.inside(path[len(FILE) :], self.folder):
                    return None
                return 403, "That file is not one of this page's."
            below = path.startswith(READ) and ".." not in path.split("/") and "\\" not in path
            if (path in PAGES or below) and b"deep_link" not in scope["query_string"]:
                return None
        elif verb == "POST" and path in WRITE:
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "The length of what is sent must be said."
            if int(length) > (TOGETHER if path == f"{API}upload" else ASKED):
                return 413, "That is too much at once."
            return None
        return 404, "There is nothing here."

    async def _read(self, receive: Callable) -> tuple[tuple[int, str] | None, Callable]:
        """What is wrong with a body of JSON, and how to receive it again."""
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return (400, "The request broke off."), receive
            body += message.get("body", b"")
        try:
            fine = all(files.inside(path, self.folder) for path in _paths(json.loads(body)))
        except (ValueError, RecursionError):
            return (400, "That is not JSON."), receive
        if not fine:
            return (403, "That file is not one of this page's."), receive
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> dict:
            return unread.pop() if unread else await receive()

        return None, again


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at a host's port, 0 for any that is free.

    UsageError for a host that is none; ClipguideError if the port is in use or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"A port is a number from 0 to 65535, not {port}.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"There is no host {host}: give an address of this machine.") from None
    sock = socket.socket(family)
    try:
        if os.name == "posix":  # elsewhere it would let two programs listen
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


def application(models: Models, folder: str | os.PathLike, *, host: str = "127.0.0.1") -> Guard:
    """The page as an ASGI application; its files lie in `folder`."""
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
    blocks.has_launched = True  # or Gradio would not look where the files lie that it is given
    return Guard(app, folder, hosts=_hosts(host))


def serve(models: Models, sock: socket.socket, *, host: str, ready: Callable[[str], None]) -> None:
    """Serve the page at a socket until Ctrl+C; `ready` is told its address once it answers."""
    import uvicorn

    address = f"http://{_url_name(host)}:{sock.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                ready(address)

    with tempfile.TemporaryDirectory(prefix="clipguide-", ignore_cleanup_errors=True) as folder:
        app = application(models, os.path.realpath(folder), host=host)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                Server(config).run(sockets=[sock])
        finally:
            models.stops.stop()
            sock.close()


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens at a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hosts(host: str) -> frozenset[str] | None:
    if not is_local(host):
        return None
    return frozenset({"127.0.0.1", "localhost", "[::1]", _url_name(host)})


def _url_name(host: str) -> str:
    """A host as a URL has it; one that stands for all addresses is this machine's own."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    return host.lower().rsplit(":", 1)[0] if not host.endswith("]") else host.lower()


def _is_json(scope: dict) -> bool:
    return scope["method"] == "POST" and scope["path"] != f"{API}upload"


def _paths(value: Any) -> list[str]:
    """Every path of a file in a body that was sent."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if one.get("path") is not None:
                found.append(str(one["path"]))
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
    return found


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


async def _answer(send: Callable, status: int, words: str) -> None:
    headers = {**HEADERS, "content-type": "text/plain; charset=utf-8", "connection": "close"}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": words.encode()})
