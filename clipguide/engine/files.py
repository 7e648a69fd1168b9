"""Which files are meant: names, patterns, folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from functools import cache

from ..errors import UsageError
from ..prompts import shorten

URLS = ("http://", "https://")


def find(
    sources: Iterable[str | os.PathLike],
    *,
    recursive: bool = True,
    urls: bool = False,
    passed: list[str] | None = None,
) -> Iterator[str]:
    """The files that `sources` mean, each once, a folder's in the order of their names.

    A source is a file, which need not exist (whoever reads it says so), a pattern such as
    "a/**/*.png", or a folder: of it, files whose names end as pictures' do, those of its
    subfolders as well if `recursive`, no hidden ones, and no link in circles. What else is in
    folders is noted in `passed`. UsageError for a pattern that matches nothing, a folder that
    cannot be read, and a URL unless `urls`.
    """
    seen: set[str] = set()
    for source in map(os.fspath, sources):
        for path in _expand(source, recursive, urls, passed):
            if path not in seen:
                seen.add(path)
                yield path


def _expand(source: str, recursive: bool, urls: bool, passed: list[str] | None) -> Iterable[str]:
    if source.lower().startswith(URLS):
        if not urls:
            raise UsageError(
                f"{shorten(source)} is a URL: download it first, or allow it with --urls."
            )
        return [source]
    if os.path.isdir(source):
        return _walk(source, recursive, passed, set())
    if glob.has_magic(source) and not os.path.lexists(source):
        found = sorted(p for p in glob.iglob(source, recursive=True) if not os.path.isdir(p))
        if not found:
            raise UsageError(f"No file matches {shorten(source)}.")
        return found
    return [source]


def _walk(
    folder: str, recursive: bool, passed: list[str] | None, parents: set[tuple[int, int]]
) -> Iterator[str]:
    try:
        about = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    here = (about.st_dev, about.st_ino)
    if here in parents:  # a link to a folder that holds it
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            if recursive:
                yield from _walk(entry.path, recursive, passed, parents | {here})
        elif os.path.splitext(entry.name)[1].lower() in picture_endings():
            yield entry.path
        elif passed is not None:
            passed.append(entry.path)


@cache
def picture_endings() -> frozenset[str]:
    """The endings of files that Pillow reads, ".png" and so on; not of films and documents."""
    from PIL import Image

    Image.init()
    readable = {
        end for end, format_ in Image.registered_extensions().items() if format_ in Image.OPEN
    }
    return frozenset(
        readable - {".mpg", ".mpeg", ".pdf", ".ps", ".eps", ".h5", ".hdf", ".bufr", ".grib"}
    )
