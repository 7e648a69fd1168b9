"""Look up files in the table as they are listed. Memory grows by two bytes per row of the table."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..engine.cache import RACY, signed
from .items import MICROSECOND
from .store import CHUNK, Store, quote, text_of

T = TypeVar("T")
INTEGERS = ("size", "mtime", "inode", "caption_mtime", "indexed_at")
BITS, HASHES = 16, 8  # bits per digest: 1 in 1,700 new digests is taken for a known one
LEAST = 1 << 16  # bits in all


@dataclass(frozen=True)
class Row:
    """The row of a file: times in µs, and in ns for the .txt of a caption."""

    digest: bytes
    caption: str | None
    size: int
    mtime: int
    inode: int
    caption_mtime: int
    indexed_at: int

    def unchanged(self, about: Any) -> bool:
        """Return whether size, time and inode are unchanged, and the file had not been changed just
        before it was read. git calls such a file racy."""
        return (
            self.size == about.st_size
            and self.mtime == about.st_mtime_ns // MICROSECOND
            and self.inode == signed(about.st_ino)
            and (self.indexed_at - self.mtime) * MICROSECOND > RACY
        )


def rows(store: Store, paths: Sequence[str]) -> dict[str, Row]:
    """Return the rows of files by their text in the table. If two programs wrote rows of one file,
    keep the newest and delete the others."""
    if store.table is None:
        return {}
    names = ["path", "digest", "caption", *INTEGERS]
    found = store.find("path", list(map(text_of, paths)), names)
    numbers = [found[name].cast("int64").fill_null(0).to_pylist() for name in INTEGERS]
    known: dict[str, Row] = {}
    newest: dict[str, tuple[int, int]] = {}
    again = []
    columns = (found[name].to_pylist() for name in ("_rowid", "path", "digest", "caption"))
    for rowid, path, digest, caption, *of in zip(*columns, *numbers, strict=True):
        age = (of[-1], rowid)
        if path in newest:
            again.append(min(age, newest[path])[1])
        if path not in newest or age > newest[path]:
            newest[path], known[path] = age, Row(digest, caption, *of)
    store.delete_rows(again)
    return known


def contents(store: Store, digests: list[bytes], paths: set[str]) -> dict[bytes, dict[str, dict]]:
    """Return one row for each content in the table, and those of `paths`, by digest and path."""
    if not digests or store.table is None:
        return {}
    found = store.find("digest", digests, ["path", "digest"])
    chosen: dict[bytes, list[int]] = {}
    columns = (found[name].to_pylist() for name in ("_rowid", "path", "digest"))
    for rowid, path, digest in zip(*columns, strict=True):
        if digest not in chosen or path in paths:
            chosen.setdefault(digest, []).append(rowid)
    ids = [rowid for rowids in chosen.values() for rowid in rowids]
    if not ids:
        return {}
    whole = store.ask(
        lambda table: table.take_row_ids(ids).select(table.schema.names).to_arrow()
    )
    known: dict[bytes, dict[str, dict]] = {}
    for record in whole.to_pylist():
        if record["digest"] in chosen:  # a compaction may have renumbered the rows
            known.setdefault(record["digest"], {})[record["path"]] = record
    return known


def inside(folder: str) -> str:
    """Return the SQL condition for a path in a folder or below it. The folder ends with a slash."""
    last = folder[:-1] + chr(ord(folder[-1]) + 1)
    return f"path >= {quote(folder)} AND path < {quote(last)}"


class Digests:
    """A Bloom filter of the contents of a table (Bloom 1970), with two bytes per row. A content
    that it does not have is new. One that it has is looked up at the commit."""

    def __init__(self, count: int) -> None:
        self.bits = np.zeros(max(LEAST, count * BITS + 7) // 8, np.uint8)

    @classmethod
    def of(cls, store: Store) -> Digests:
        """Return the filter of a table as it is now."""
        known = cls(store.count())
        if store.table is not None:
            for batch in store.batches(["digest"]):
                known.add(batch["digest"].to_pylist())
        return known

    def add(self, digests: Sequence[bytes]) -> None:
        if digests:
            place_NH = self._places(digests)
            np.bitwise_or.at(self.bits, place_NH >> 3, np.uint8(1) << (place_NH & 7).astype("u1"))

    def __contains__(self, digest: bytes) -> bool:
        place_H = self._places([digest])[0]
        return bool((self.bits[place_H >> 3] >> (place_H & 7).astype("u1") & 1).all())

    def _places(self, digests: Sequence[bytes]) -> np.ndarray:
        """Return place_NH of bits, by double hashing (Kirsch & Mitzenmacher 2006). A digest is the
        hash."""
        half_N4 = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 4)
        step_H = np.arange(HASHES, dtype="u8")
        with np.errstate(over="ignore"):
            place_NH = half_N4[:, :1] + step_H * (half_N4[:, 1:2] | np.uint64(1))
        return (place_NH % np.uint64(len(self.bits) * 8)).astype(np.int64)


class Spool:
    """A list on disk. It is first written and then read."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="clipguide-")
        self._part: list = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Any) -> None:
        self._part.append(item)
        self._count += 1
        if len(self._part) == CHUNK:
            self._flush()

    def __iter__(self) -> Iterator[Any]:
        self._flush()
        self._file.seek(0)
        while True:
            try:
                part = pickle.load(self._file)
            except EOFError:
                return
            yield from part

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        if self._part:
            self._file.seek(0, os.SEEK_END)
            pickle.dump(self._part, self._file, protocol=pickle.HIGHEST_PROTOCOL)
            self._part = []


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of at most `size` items."""
    part: list[T] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
