"""Find the image files that names, patterns and folders stand for."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cache

from ..errors import ClipguideWarning, UsageError
from ..prompts import shorten

URLS = ("http://", "https://")


class Named(str):
    """A file name that `find` never takes as a pattern, whatever characters it contains."""



def find(
    sources: Iterable[str | os.PathLike],
    *,
    recursive: bool = True,
    urls: bool = False,
    passed: list[str] | None = None,
    unread: list[str] | None = None,
) -> Iterator[str]:
    """Yield the files that `sources` name, each once. Those of a folder come in the order of names.

    Args:
        sources: files, patterns such as `a/**/*.png`, and folders. A file need not exist: the
            reader of the file reports that. A folder stands for the files in it that have the
            extension of an image. Hidden files and circular links are left out.
        recursive: whether subfolders are searched too.
        urls: whether a source may be a URL.
        passed: a list that receives the files in the folders that are not images.
        unread: a list that collects subfolders that cannot be read. Without it, each gives a
            warning.

    Raises:
        UsageError: a pattern matches nothing, a folder in `sources` cannot be read, or a source is
            a URL and `urls` is False.
    """
    seen: set[str] = set()
    for source in map(os.fspath, sources):
        for path in _expand(source, recursive, urls, passed, unread):
            if path not in seen:
                seen.add(path)
                yield path


def _expand(
    source: str,
    recursive: bool,
    urls: bool,
    passed: list[str] | None,
    unread: list[str] | None,
) -> Iterable[str]:
    if source.lower().startswith(URLS):
        if not urls:
            raise UsageError(
                f"{shorten(source)} is a URL: download it first, or allow it with --urls."
            )
        return [source]
    if os.path.isdir(source):
        return _walk(source, recursive, passed, unread)
    if isinstance(source, Named):
        return [str(source)]
    if glob.has_magic(source) and not os.path.lexists(source):
        found = sorted(p for p in glob.iglob(source, recursive=True) if not os.path.isdir(p))
        if not found:
            raise UsageError(f"No file matches {shorten(source)}.")
        return found
    return [source]


def _walk(
    folder: str, recursive: bool, passed: list[str] | None, unread: list[str] | None
) -> Iterator[str]:
    try:
        waiting = [_listed(folder)]
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    while waiting:
        _, entries = waiting[-1]
        entry = next(entries, None)
        if entry is None:
            waiting.pop()
        elif entry.name.startswith("."):
            continue
        elif os.path.isdir(entry.path):
            if not recursive:
                continue
            try:
                found = _listed(entry.path)
            except OSError as error:
                _tell_unread(entry.path, error, unread)
                continue
            if all(found[0] != here for here, _ in waiting):  # no link to a folder above it
                waiting.append(found)
        elif os.path.splitext(entry.name)[1].lower() in picture_endings():
            yield entry.path
        elif passed is not None:
            passed.append(entry.path)


def _listed(folder: str) -> tuple[tuple[int, int], Iterator[os.DirEntry]]:
    """Return the identity of a folder, and its entries by name."""
    about = os.stat(folder)
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    return (about.st_dev, about.st_ino), iter(found)


def _tell_unread(folder: str, error: OSError, unread: list[str] | None) -> None:
    if unread is not None:
        unread.append(folder)
        return
    warnings.warn(
        f"The folder {folder} cannot be read ({error.strerror}), and is passed over.",
        ClipguideWarning,
        stacklevel=4,
    )


@cache
def picture_endings() -> frozenset[str]:
    """Return the suffixes of image files that Pillow reads, such as ".png", without films and
    documents."""
    from PIL import Image

    from ..reading import formats

    formats()
    readable = {
        end for end, format_ in Image.registered_extensions().items() if format_ in Image.OPEN
    }
    return frozenset(
        readable - {".mpg", ".mpeg", ".pdf", ".ps", ".eps", ".h5", ".hdf", ".bufr", ".grib"}
    )
