"""The places of an index and its sources, checked before anything slow is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError

TABLE = "pictures"


def default_path() -> Path | str:
    """Return $CLIPGUIDE_DB, which may be a URI, or clipguide/pictures in your data folder. It need
    not exist."""
    if place := os.environ.get("CLIPGUIDE_DB"):
        return place if is_url(place) else Path(place)
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "clipguide" / "pictures"


def is_url(place: str | os.PathLike) -> bool:
    """Return whether a place is a URL or URI, and not on a disk of this machine."""
    text = os.fspath(place)
    return isinstance(text, str) and "://" in text


def check_index(place: str | os.PathLike) -> None:
    """Raise UsageError if a folder holds no index. A URI is checked when it is opened."""
    place = os.fspath(place)
    if is_url(place):
        return
    check_folder(place)
    if not os.path.lexists(place):
        raise UsageError(
            f"There is no index {place}: make it with clipguide index FOLDER{option(place)}."
        )
    if not os.path.isdir(os.path.join(place, f"{TABLE}.lance")):
        raise no_index(place)


def check_folder(place: str | os.PathLike) -> None:
    """Raise UsageError if the place has no name, or is not a folder."""
    if not os.fspath(place):
        raise UsageError("The name of the index is empty: give a folder by --db.")
    if not is_url(place) and os.path.lexists(place) and not os.path.isdir(place):
        raise UsageError(f"{place} is no folder, so it is no index: choose another --db.")


def check_sources(sources: Iterable[str | os.PathLike], place: str | os.PathLike) -> None:
    """Raise UsageError if a folder or file to index does not exist."""
    for source in map(os.fspath, sources):
        if is_url(source) or os.path.lexists(source) or set("*?[") & set(source):
            continue
        there = is_url(place) or os.path.isdir(os.path.join(place, f"{TABLE}.lance"))
        if not source:
            raise UsageError("The name of a folder is empty: say which images are indexed.")
        kept = " What the index holds of it stays there." if there else ""
        raise UsageError(f"There is no folder or file {source}.{kept}")


def no_index(place: str | os.PathLike) -> UsageError:
    """Return the error that a place has no index, with the command that makes one."""
    return UsageError(
        f"{place} holds no index of images: make it with clipguide index FOLDER{option(place)}."
    )


def option(place: str | os.PathLike) -> str:
    """Return the option that names an index on the command line."""
    return "" if os.fspath(place) == os.fspath(default_path()) else f" --db {os.fspath(place)}"
