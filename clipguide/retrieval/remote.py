"""Pictures in object storage, by fsspec: what is there, and what has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from glob import has_magic
from typing import Any

from ..engine.files import URLS, picture_endings
from ..errors import UsageError, reason
from . import facts
from .facts import GIVEN

TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
TAGS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5")
SIDECAR = ".txt"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class About:
    """What os.stat says of a file, and a listing of an object: bytes, ns, and a number that is
    another for another content (the inode, or the first 8 bytes of a digest of the ETag)."""

    st_size: int
    st_mtime_ns: int
    st_ino: int

    @classmethod
    def of(cls, about: os.stat_result) -> About:
        return cls(about.st_size, about.st_mtime_ns, about.st_ino)

    @classmethod
    def listed(cls, info: dict[str, Any]) -> About:
        """Of an entry of fsspec's listing; a time that it does not tell is 0."""
        tag = next((str(info[name]) for name in TAGS if info.get(name)), None)
        number = int(info.get("ino") or 0)
        if tag is not None:
            number = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "little")
        when = next((info[name] for name in TIMES if info.get(name)), 0)
        return cls(int(info.get("size") or 0), _nanoseconds(when), number)


def is_url(source: object) -> bool:
    """Whether fsspec is to read it; http is not."""
    text = os.fspath(source)
    return isinstance(text, str) and "://" in text and not text.lower().startswith(URLS)


class Listing:
    """The pictures under URLs, in the order of their names: `files` by URL, `sidecars` of them (ns
    by URL), and for each folder (with a slash at its end) whether it is empty.

    UsageError for what is not there or cannot be listed.
    """

    def __init__(
        self, urls: Sequence[str], *, recursive: bool, passed: list[str] | None = None
    ) -> None:
        self.files: dict[str, About] = {}
        self.sidecars: dict[str, int] = {}
        self.folders: dict[str, bool] = {}
        for url in urls:
            for name, info, named in self._entries(url, recursive):
                ending = os.path.splitext(name)[1].lower()
                if named or ending in picture_endings():
                    self.files[name] = About.listed(info)
                    continue
                if ending == SIDECAR:
                    self.sidecars[name] = About.listed(info).st_mtime_ns
                if passed is not None:
                    passed.append(name)

    def _entries(self, url: str, recursive: bool) -> Iterator[tuple[str, dict, bool]]:
        """Each entry's URL and facts, and whether it was named and not only found in a folder."""
        fs, place = filesystem(url)
        alone = place  # what is named by itself may be hidden
        try:
            if has_magic(place) and not fs.exists(place):
                found = fs.glob(place, detail=True)
                if not found:
                    raise UsageError(f"No file matches {url}.")
                folder = None
            elif fs.isdir(place):
                found = fs.find(place, maxdepth=None if recursive else 1, detail=True)
                folder = fs.unstrip_protocol(place).rstrip("/") + "/"
                self.folders[folder] = not found
            else:
                found, folder = {place: fs.info(place)}, None
            if folder is None:
                self._beside(fs, found)
        except FileNotFoundError:
            raise UsageError(f"There is no folder or file {url}.") from None
        except UsageError:
            raise
        except Exception as error:  # every store raises its own
            raise UsageError(f"{url} cannot be listed: {reason(error)}.") from error
        for place, info in sorted(found.items()):
            name = fs.unstrip_protocol(place)
            inside = name[len(folder) :] if folder else os.path.basename(name)
            hidden = any(part.startswith(".") for part in inside.split("/"))
            if info.get("type") != "directory" and (place == alone or not hidden):
                yield name, info, folder is None

    def _beside(self, fs: Any, found: Iterable[str]) -> None:
        """Note the sidecars in the folders of files that were named."""
        for home in {place.rpartition("/")[0] for place in found}:
            for info in fs.ls(home, detail=True):
                if info["name"].lower().endswith(SIDECAR):
                    stamp = About.listed(info).st_mtime_ns
                    self.sidecars[fs.unstrip_protocol(info["name"])] = stamp


class Captions(facts.Captions):
    """Captions of files, and of objects by the same rules: from a table, else from a .txt."""

    def __init__(self, table: str | os.PathLike | None, listing: Listing) -> None:
        super().__init__(table)
        self.home = os.path.abspath(os.path.dirname(table)) if table is not None else ""
        self.sidecars = listing.sidecars

    def stamp(self, path: str) -> int | None:
        if not is_url(path):
            return super().stamp(path)
        known = self._key(path) in self._given
        return GIVEN if known else self.sidecars.get(os.path.splitext(path)[0] + SIDECAR)

    def text(self, path: str) -> str | None:
        if not is_url(path):
            return super().text(path)
        stamp = self.stamp(path)
        return self._given[self._key(path)] if stamp == GIVEN else sidecar(path) if stamp else None

    def _key(self, path: str) -> str:
        """A URL as a table's column of paths relative to its folder comes out."""
        return os.path.normpath(os.path.join(self.home, path))


def sidecar(path: str) -> str | None:
    """The text beside a picture."""
    if not is_url(path):
        return facts.Captions().text(path)
    try:
        text = content(os.path.splitext(path)[0] + SIDECAR, most=20_000)
    except OSError:
        return None
    return " ".join(text.decode("utf-8-sig", "replace").replace("\0", " ").split()) or None


def content(url: str, *, most: int | None = None) -> bytes:
    """The bytes of an object, or the first of them."""
    fs, place = filesystem(url)
    return fs.cat_file(place, end=most) if most else fs.cat_file(place)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the place in it. UsageError if there is none."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:  # of the package for one kind of store
        raise UsageError(f"{url} cannot be read: {reason(error)}.") from None
    except ValueError as error:
        raise UsageError(f"{url} is no place that fsspec knows: {reason(error)}.") from None


def _nanoseconds(when: Any) -> int:
    """Of a datetime, its ISO form, or seconds."""
    if isinstance(when, str):
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        return (when - EPOCH) // timedelta(microseconds=1) * 1000
    return round(when * 1e6) * 1000
