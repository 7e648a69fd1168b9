"""List images in object storage with fsspec, folder by folder, and find what has changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from glob import has_magic
from typing import Any

from .. import tables
from ..engine.files import picture_endings
from ..errors import ClipguideError, UsageError, reason
from . import captions
from .captions import ENDING, GIVEN
from .items import Listed, Work
from .places import is_url

TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
TAGS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class About:
    """The facts of a file from os.stat, or of an object from a listing: bytes, ns, and a number
    that changes with the content (the inode, or the first 8 bytes of a digest of the ETag)."""

    st_size: int
    st_mtime_ns: int
    st_ino: int

    @classmethod
    def listed(cls, info: dict[str, Any]) -> About:
        """Return the facts of an entry of fsspec's listing. A missing time is 0."""
        tag = next((str(info[name]) for name in TAGS if info.get(name)), None)
        number = int(info.get("ino") or 0)
        if tag is not None:
            number = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "little")
        when = next((info[name] for name in TIMES if info.get(name)), 0)
        return cls(int(info.get("size") or 0), _nanoseconds(when), number)


class Listing:
    """The images under URLs, as a stream of `Listed`. One folder at a time is in memory.

    `roots` are the folders among the URLs, `folders` those that were walked. `unread` are the
    folders that a store did not list; it is complete after the walk. All end with a slash.
    `walked(folder, names, is_empty)` is called for each folder.

    Raises:
        UsageError: a URL does not exist or cannot be listed.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        recursive: bool,
        passed: list[str] | None = None,
        walked: Callable[[str, set[str], bool], None] | None = None,
    ) -> None:
        self.recursive, self.passed, self.walked = recursive, passed, walked
        self.folders: set[str] = set()
        self.roots: list[str] = []
        self.unread: list[str] = []
        self._sources = [self._source(url) for url in urls]

    def __iter__(self) -> Iterator[Listed]:
        for fs, place, named in self._sources:
            if named is None:
                yield from self._walk(fs, place)
            else:
                yield from self._named(fs, named)

    def _source(self, url: str) -> tuple[Any, str, dict | None]:
        """Return the file system and path of a URL, and the files that it names, or None for a
        folder."""
        fs, place = filesystem(url)
        try:
            if has_magic(place) and not fs.exists(place):
                found = fs.glob(place, detail=True)
                if not found:
                    raise UsageError(f"No file matches {url}.")
                return fs, place, found
            if fs.isdir(place):
                self.roots.append(fs.unstrip_protocol(place).rstrip("/") + "/")
                return fs, place, None
            return fs, place, {place: fs.info(place)}
        except FileNotFoundError:
            raise UsageError(f"There is no folder or file {url}.") from None
        except UsageError:
            raise
        except Exception as error:  # each store raises its own errors
            raise UsageError(f"{url} cannot be listed: {reason(error)}.") from error

    def _walk(self, fs: Any, place: str) -> Iterator[Listed]:
        depth, at = None if self.recursive else 1, time.time_ns()
        waiting = {fs.unstrip_protocol(place).rstrip("/") + "/"}  # found, but not walked yet
        walk = fs.walk(place, maxdepth=depth, detail=True)  # walk omits folders that it cannot list
        while step := self._step(walk, place):
            folder, inner, files = step
            name = fs.unstrip_protocol(folder).rstrip("/") + "/"
            waiting.discard(name)
            shown = {
                f"{name}{one}": info for one, info in files.items() if one[:1] not in ("", ".")
            }
            for one in [one for one in inner if one.startswith(".")]:
                del inner[one]
            if self.recursive:
                waiting |= {f"{name}{one}/" for one in inner}
            listed = list(self._listed(shown, at))
            self.folders.add(name)
            if self.walked is not None:
                self.walked(name, {one.path for one in listed}, not (files or inner))
            yield from listed
            at = time.time_ns()  # the next folder is listed after this
        self.unread += sorted(waiting)

    @staticmethod
    def _step(walk: Iterator, place: str) -> tuple[str, dict, dict] | None:
        """Walk the next folder. Return None after the last one."""
        try:
            return next(walk, None)
        except Exception as error:  # each store raises its own errors
            raise ClipguideError(
                f"{place} cannot be listed to its end ({reason(error)}): repeat the command; what "
                "the index holds stays."
            ) from error

    def _named(self, fs: Any, found: dict[str, dict]) -> Iterator[Listed]:
        """Yield the named files, whatever their endings, with the captions next to them."""
        at, beside = time.time_ns(), {}
        for home in {place.rpartition("/")[0] for place in found}:
            for info in fs.ls(home, detail=True):
                if info["name"].lower().endswith(ENDING):
                    beside[fs.unstrip_protocol(info["name"])] = About.listed(info).st_mtime_ns
        for place, info in sorted(found.items()):
            name = fs.unstrip_protocol(place)
            hidden = os.path.basename(name).startswith(".") and len(found) > 1
            if info.get("type") != "directory" and not hidden:
                yield Listed(name, About.listed(info), beside.get(captions.beside(name)), at)

    def _listed(self, files: dict[str, dict], at: int) -> Iterator[Listed]:
        """Yield the images among the files of a folder. Skip other files."""
        beside = {
            name: About.listed(info).st_mtime_ns
            for name, info in files.items()
            if name.lower().endswith(ENDING)
        }
        for name, info in sorted(files.items()):
            if os.path.splitext(name)[1].lower() in picture_endings():
                yield Listed(name, About.listed(info), beside.get(captions.beside(name)), at)
            elif self.passed is not None:
                self.passed.append(name)


def caption(work: Work) -> str | None:
    """Return the caption of a file or an object."""
    if work.stamp is None or work.stamp == GIVEN:
        return work.caption
    if not is_url(work.path):
        return tables.sidecar(work.path)
    try:
        return tables.said(content(captions.beside(work.path), most=tables.LONGEST))
    except OSError:
        return None


def content(url: str, *, most: int | None = None) -> bytes:
    """Return the bytes of an object, or the first of them."""
    fs, place = filesystem(url)
    return fs.cat_file(place, end=most) if most else fs.cat_file(place)


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, without a cache of listings, and the path in it. Raise
    UsageError if there is none."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url, use_listings_cache=False)
    except ImportError as error:  # from the package of one kind of store
        raise UsageError(f"{url} cannot be read: {reason(error)}.") from None
    except ValueError as error:
        raise UsageError(f"{url} is no place that fsspec knows: {reason(error)}.") from None


def split(sources: Iterable[str | os.PathLike]) -> tuple[list, list[str]]:
    """Return the sources on this machine's disks, and the URLs."""
    sources = list(sources)
    return [s for s in sources if not is_url(s)], [str(s) for s in sources if is_url(s)]


def _nanoseconds(when: Any) -> int:
    """Return the time in ns of a datetime, of its ISO form, or of seconds."""
    if isinstance(when, str):
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        return (when - EPOCH) // timedelta(microseconds=1) * 1000
    return round(when * 1e6) * 1000
