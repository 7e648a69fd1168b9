"""Limit what a browser may request from the page, and how much it may send.

Gradio's server answers more requests than this page needs. A Guard stands before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from . import files
from .network import Access

API = "/gradio_api/"
READ = ("/assets/", "/static/", "/svelte/", f"{API}heartbeat/")  # and everything below
PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
PAGES |= {f"{API}{name}" for name in ("queue/data", "upload_progress", "startup-events", "info")}
UPLOAD = f"{API}upload"
WRITE = {f"{API}{name}" for name in ("queue/join", "run/predict", "cancel", "reset", "upload")}
FILE = f"{API}file="
TOGETHER = 256 << 20  # largest upload of one request, in bytes
ASKED = 1 << 20  # largest other request, in bytes
QUOTA = 2 << 30  # largest total of the page's files, in bytes
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' "
    "'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; font-src 'self' "
    "data:; worker-src 'self' blob:; media-src 'self' blob:; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
TOO_MUCH = 413, "That is too much at once."
FULL = 507, "The page holds as many uploads as it may: try again later."
NO_FILE = 403, "That file is not one of this page's."
Refusal = tuple[int, str]


class Guard:
    """An ASGI application that passes on the requests of the page and refuses all others with a
    sentence.

    Only files in `folder` can be requested or named in a request, after links and dots are
    followed. Uploads are counted as they arrive, whatever their headers say, and are refused if
    they are too large, alone or with the files in `folder`. The answers tell the browser to contact
    no other host. `access` says who may use the page, and under which names.
    """

    def __init__(self, app: Callable, folder: str | os.PathLike, *, access: Access) -> None:
        self.app, self.folder, self.access = app, os.fspath(folder), access

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
        if refused is not None:
            await _answer(send, *refused)
        elif scope["method"] == "POST" and scope["path"] == UPLOAD:
            await self._upload(scope, receive, send)
        elif scope["method"] == "POST":
            refused, again = await self._read(receive)
            if refused is not None:
                await _answer(send, *refused)
            else:
                await self.app(scope, again, _guarded(send))
        else:
            await self.app(scope, receive, _guarded(send))

    def _refused(self, scope: dict, headers: dict[str, str]) -> Refusal | None:
        """Return status and reason if a request is not one of the page's."""
        path, verb = scope["path"], scope["method"]
        if not self.access.knows(headers.get("host", "")):
            return 403, "This page does not go by that name."
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return 403, "Another page may not ask this one."
        if not self.access.admits(headers.get("authorization", "")):
            return 401, "This page asks for a user and a password."
        if verb in ("GET", "HEAD"):
            if path.startswith(FILE):
                return None if files.inside(path[len(FILE) :], self.folder) else NO_FILE
            below = path.startswith(READ) and ".." not in path.split("/") and "\\" not in path
            if (path in PAGES or below) and b"deep_link" not in scope["query_string"]:
                return None
        elif verb == "POST" and path in WRITE:
            length, most = headers.get("content-length", "0"), _most(path)
            return TOO_MUCH if not length.isdecimal() or int(length) > most else None
        return 404, "There is nothing here."

    async def _upload(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass uploads on as they arrive, until they are too large."""
        left = QUOTA - files.held(self.folder)
        body = Counted(receive, min(TOGETHER, left))
        guarded = _guarded(send)

        async def unless_over(message: dict) -> None:
            if not body.is_over:
                await guarded(message)

        try:
            await self.app(scope, body, unless_over)
        except Exception:
            if not body.is_over:
                raise
        if body.is_over:
            await _answer(send, *(FULL if left < TOGETHER else TOO_MUCH))

    async def _read(self, receive: Callable) -> tuple[Refusal | None, Callable]:
        """Return the fault of a JSON body, and a function that receives the body again."""
        counted, parts, more = Counted(receive, ASKED), [], True
        while more:
            message = await counted()
            if counted.is_over:
                return TOO_MUCH, receive
            if message["type"] == "http.disconnect":
                return (400, "The request broke off."), receive
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        try:
            fine = all(files.inside(path, self.folder) for path in _paths(json.loads(body)))
        except (ValueError, RecursionError):
            return (400, "That is not JSON."), receive
        if not fine:
            return NO_FILE, receive
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> dict:
            return unread.pop() if unread else await receive()

        return None, again


class Counted:
    """Receive a body, and stop after `most` bytes. Then it `is_over`."""

    def __init__(self, receive: Callable, most: int) -> None:
        self.receive, self.left, self.is_over = receive, most, False

    async def __call__(self) -> dict:
        if self.is_over:
            return {"type": "http.disconnect"}
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            self.is_over = True
            return {"type": "http.disconnect"}
        return message


def _most(path: str) -> int:
    return TOGETHER if path == UPLOAD else ASKED


def _guarded(send: Callable) -> Callable:
    """Return a send function that adds the headers of the page."""

    async def guarded(message: dict) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_encoded(HEADERS)]}
        await send(message)

    return guarded


def _paths(value: Any) -> list[str]:
    """Return every path of a file in a body."""
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
    if status == 401:
        headers["www-authenticate"] = 'Basic realm="clipguide", charset="UTF-8"'
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": words.encode()})
