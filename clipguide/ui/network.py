"""Access to the page: addresses, names, passwords. Imports nothing slow."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UsageError

HERE = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Access:
    """The host names of the page (None allows any), and the user and password (None allows
    everybody). The names prevent that another page reaches this one under its own name."""

    names: frozenset[str] | None
    auth: tuple[str, str] | None = None

    def knows(self, host: str) -> bool:
        """Return whether a Host header has one of the names."""
        return self.names is None or _without_port(host) in self.names

    def admits(self, header: str) -> bool:
        """Return whether an Authorization header has user and password (RFC 7617)."""
        if self.auth is None:
            return True
        kind, _, coded = header.partition(" ")
        try:
            given = base64.b64decode(coded.strip(), validate=True)
        except (ValueError, binascii.Error):
            given = b""
        right = hmac.compare_digest(given, ":".join(self.auth).encode())
        return kind.lower() == "basic" and right


def access(host: str, *, auth: str | None = None, allow: Iterable[str] = ()) -> Access:
    """Return the access to a page that listens on `host`: with `auth`, "user:password", and under
    the names `allow` and the host's own.

    Raises:
        UsageError: other machines reach the host, and neither is given.
    """
    allow = [_checked(name) for name in allow]
    pair = None if auth is None else _pair(auth)
    if is_local(host):
        return Access(frozenset({*HERE, url_name(host), *allow}), pair)
    if pair is None and not allow:
        raise UsageError(
            f"Other machines can open --host {host}: give --auth USER:PASSWORD, or "
            "--allow-host NAME for each name that they use."
        )
    return Access(frozenset({url_name(host), *allow}) if allow else None, pair)


def is_local(host: str) -> bool:
    """Return whether only this machine reaches what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_name(host: str) -> str:
    """Return a host as it stands in a URL. An address for all networks becomes this machine's own.
    """
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host.lower()


def _pair(auth: str) -> tuple[str, str]:
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UsageError("--auth is a user and a password with a colon between: USER:PASSWORD.")
    return user, password


def _checked(name: str) -> str:
    name = name.strip().lower()
    if not name or any(sign in name for sign in "/*@ ") or "://" in name:
        raise UsageError(f"--allow-host is a name such as pictures.lan, and not {name!r}.")
    return url_name(name) if name.count(":") > 1 else _without_port(name)


def _without_port(host: str) -> str:
    """Return the name in a Host header."""
    host = host.lower()
    return host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host
