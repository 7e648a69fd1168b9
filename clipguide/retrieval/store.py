"""The table of an index: its columns, its version, its lock, and its queries.

LanceDB keeps it in a folder. Every change is one atomic commit, so a program that is killed loses
only what it had not committed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import imports
from ..errors import ClipguideError, UsageError
from . import faults, places
from .places import TABLE

T = TypeVar("T")
FORMAT = 1
WORDS = "background"
LOCK = ".writer"
HEADS = ("clipguide.format", "clipguide.key", "clipguide.model")
TRIES = 10  # attempts of a commit if other programs are faster
CHUNK = 4096  # values in one IN
COLUMNS = (  # columns that --where may name, and that an answer has
    "path",
    "folder",
    "size",
    "mtime",
    "width",
    "height",
    "format",
    "date",
    "camera",
    "prompt",
    "caption",
    "indexed_at",
)


def lancedb() -> Any:
    """Return the module. Raise UsageError if it is not installed."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings do not help a user
    try:
        return imports.lancedb()
    except ModuleNotFoundError:
        raise UsageError(
            "Search needs LanceDB, which is not installed: pip install 'clipguide[search]'."
        ) from None


def schema(width: int, *, key: str, model: str) -> Any:
    """Return the Arrow schema of an index with vectors of `width` numbers."""
    import pyarrow as pa

    kinds = {
        "path": pa.string(),
        "folder": pa.string(),
        "size": pa.int64(),
        "mtime": pa.timestamp("us"),
        "inode": pa.int64(),
        "digest": pa.binary(32),  # sha256 of the file
        "vector": pa.list_(pa.float32(), width),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "date": pa.timestamp("s"),  # EXIF DateTimeOriginal, of the camera's clock
        "camera": pa.string(),
        "prompt": pa.string(),  # from a PNG that clipguide made
        "caption": pa.string(),
        # ns, of the .txt file; -1 from a table, null without a caption
        "caption_mtime": pa.int64(),
        "thumbnail": pa.binary(),  # JPEG
        "indexed_at": pa.timestamp("us"),  # time before the file was read
    }
    metadata = dict(zip(HEADS, (str(FORMAT), key, model), strict=True))
    return pa.schema(list(kinds.items()), metadata=metadata)


@dataclass(frozen=True)
class About:
    """What a search needs to know about a version of the table: the number of images, the width of
    their vectors, and the text that `note` wrote."""

    count: int
    width: int
    notes: dict[str, str]


class Store:
    """An index at `path`: the folder of a database, or a URI of one in object storage.

    `table` is None until it is made.

    Raises:
        UsageError: there is no index, and none is to be made.
        ClipguideError: the index cannot be used.
    """

    def __init__(self, path: str | os.PathLike, *, make: bool = False) -> None:
        self.path = os.fspath(path)
        self.table: Any = None
        self._about: About | None = None
        places.check_folder(self.path)
        if not make:
            places.check_index(self.path)
        module = lancedb()
        if make and not self.remote:
            self._make_folder()
        there = False
        try:
            self.db = module.connect(self.path)
            if there := TABLE in tables(self.db):
                self.table = self.db.open_table(TABLE)
        except faults.RAISED as error:
            raise self.fault(error, newest=there) from error
        if self.table is not None:
            self._check_schema()
        elif self._lost():
            raise faults.damaged(self.path, "no version of its table is left")
        elif not make:
            raise places.no_index(self.path)

    @property
    def remote(self) -> bool:
        return places.is_url(self.path)

    @property
    def key(self) -> str:
        """Return the key of the engine that made the vectors."""
        return self._head(HEADS[1])

    @property
    def model(self) -> str:
        """Return the name of the CLIP."""
        return self.notes().get("model") or self._head(HEADS[2])

    def create(self, width: int, *, key: str, model: str) -> None:
        """Make the table; where another program was quicker, open its. UsageError if that is of
        another CLIP."""
        self._about = None
        try:
            self.table = self.db.create_table(TABLE, schema=schema(width, key=key, model=model))
        except faults.RAISED as error:
            if faults.kind(error) != "conflict":
                raise self.fault(error, writing=True) from error
            self.table = self.db.open_table(TABLE)
            self._check_schema()
            self.same_model(key.split()[0], model)

    def ask(self, question: Callable[[Any], T]) -> T:
        """Return `question(table)`. If a compaction removed files that it needs, ask the newest
        version."""
        try:
            return question(self.table)
        except faults.RAISED as error:
            if faults.kind(error) != "gone" or faults.is_away(self.path):
                raise self.fault(error) from error
        self.refresh()
        try:
            return question(self.table)
        except faults.RAISED as error:
            raise self.fault(error, newest=True) from error

    def write(self, change: Callable[[Any], T]) -> T:
        """Return the result of `change(table)`, which makes one commit. If another program has
        committed in the meantime, try again with the newest version."""
        self._about = None
        for left in reversed(range(TRIES)):
            try:
                return change(self.table)
            except faults.RAISED as error:
                if faults.kind(error) != "conflict" or not left:
                    raise self.fault(error, writing=True) from error
            self.refresh()
        raise AssertionError("unreachable")

    def refresh(self) -> None:
        """Open the newest version."""
        self._about = None
        try:
            self.table = self.db.open_table(TABLE)
        except faults.RAISED as error:
            raise self.fault(error, newest=True) from error

    def find(self, column: str, values: Sequence[str | bytes], columns: Sequence[str]) -> Any:
        """Return the rows in which a column has one of some values, as an Arrow table with
        `_rowid`."""
        import pyarrow as pa

        def rows(some: Sequence[str | bytes]) -> Callable[[Any], Any]:
            rule = f"{column} IN ({', '.join(map(quote, some))})"
            return lambda table: (
                table.search().where(rule).select(list(columns)).with_row_id(True).limit(None)
            ).to_arrow()

        found = [self.ask(rows(values[i : i + CHUNK])) for i in range(0, len(values), CHUNK)]
        return pa.concat_tables(found)

    def batches(self, columns: Sequence[str], where: str | None = None) -> Iterator[Any]:
        """Yield all rows, or those of a condition, in record batches with `_rowid`."""

        def begin(table: Any) -> Any:
            query = table.search().select(list(columns)).with_row_id(True).limit(None)
            return (query.where(where) if where else query).to_batches(CHUNK)

        reader = self.ask(begin)
        while True:
            try:
                batch = next(reader, None)
            except faults.RAISED as error:
                raise self.fault(error) from error
            if batch is None:
                return
            yield batch

    def delete(self, paths: Sequence[str]) -> None:
        """Delete the rows of files."""
        for i in range(0, len(paths), CHUNK):
            some = ", ".join(map(quote, paths[i : i + CHUNK]))
            self.write(lambda table, some=some: table.delete(f"path IN ({some})"))

    def delete_rows(self, rowids: Sequence[int]) -> None:
        """Delete rows by the `_rowid` that they have in the version that is open; none where
        another program has committed a newer one, of which the numbers may be others."""
        self._about = None
        try:
            for i in range(0, len(rowids), CHUNK):
                some = ", ".join(map(str, rowids[i : i + CHUNK]))
                self.table.delete(f"_rowid IN ({some})")
        except faults.RAISED as error:
            if faults.kind(error) != "conflict":
                raise self.fault(error, writing=True) from error
            self.refresh()

    def about(self) -> About:
        """Return what a search needs to know about the open version. It is read once, because each
        query to LanceDB takes a turn of its event loop."""
        if self._about is None:
            width = self.table.schema.field("vector").type.list_size
            self._about = About(self.count(), width, self.notes())
        return self._about

    def notes(self) -> dict[str, str]:
        """Return what `note` wrote."""
        found = self.table.schema.field("vector").metadata or {}
        return {name.decode(): value.decode() for name, value in found.items()}

    def note(self, **facts: str) -> None:
        """Write facts about the index next to its vectors."""
        about = {"path": "vector", "metadata": facts}
        self.write(lambda table: table.update_field_metadata(about))

    def count(self) -> int:
        """Return the number of images."""
        return 0 if self.table is None else self.ask(lambda table: table.count_rows())

    def same_model(self, fingerprint: str, name: str) -> None:
        """Raise UsageError if another CLIP made the vectors."""
        if self.key.split()[0] != fingerprint:
            raise UsageError(
                f"The index {self.path} was made by the CLIP {self.model}, and vectors of {name} "
                f"cannot be compared with its: give --clip {self.model}, or make another index by "
                f"clipguide index FOLDER --db OTHER --clip {name}."
            )

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Hold the lock for writing, if the index is on a disk. Raise ClipguideError if another
        program holds it, or nobody can."""
        if self.remote:
            yield
            return
        try:
            stream = open(os.path.join(self.path, LOCK), "a+b")
        except OSError as error:
            raise self._unwritable(error) from None
        with stream:
            try:
                _lock(stream)
            except OSError:
                raise ClipguideError(
                    f"Another program is writing to the index {self.path}: wait until it is done."
                ) from None
            yield

    def fault(
        self, error: Exception, *, writing: bool = False, newest: bool = False
    ) -> ClipguideError:
        """Return an error of LanceDB as a sentence: see `faults.explained`."""
        return faults.explained(self.path, error, writing=writing, newest=newest)

    def _make_folder(self) -> None:
        try:
            os.makedirs(self.path, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ClipguideError:
        return ClipguideError(
            f"The index {self.path} cannot be written ({error.strerror}): choose another --db."
        )

    def _head(self, name: str) -> str:
        return (self.table.schema.metadata or {})[name.encode()].decode()

    def _check_schema(self) -> None:
        about = self.table.schema.metadata or {}
        if any(name.encode() not in about for name in HEADS):
            raise UsageError(f"{self.path} is not an index of clipguide's: choose another --db.")
        if not self._head(HEADS[0]).isdecimal() or int(self._head(HEADS[0])) > FORMAT:
            raise ClipguideError(
                f"The index {self.path} is of a newer clipguide: update clipguide, or choose "
                "another --db."
            )

    def _lost(self) -> bool:
        """Return whether the data of a table exist without any version of it."""
        data = os.path.join(self.path, f"{TABLE}.lance", "data")
        return not self.remote and os.path.isdir(data) and bool(os.listdir(data))


def model_of(path: str | os.PathLike) -> str | None:
    """Return the name of the CLIP of an index, or None if there is no index."""
    if places.is_url(path) or os.path.isdir(os.path.join(path, f"{TABLE}.lance")):
        store = Store(path, make=True)
        return store.model if store.table is not None else None
    return None


def text_of(path: str) -> str:
    """Return a path as UTF-8. Other bytes are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def quote(value: str | bytes) -> str:
    """Return a text or bytes as an SQL literal."""
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    return "'" + value.replace("'", "''") + "'"


def tables(db: Any) -> list[str]:
    """Return the names of the tables of a database."""
    return list(db.list_tables().tables)


def _lock(stream: Any) -> None:
    """Take an exclusive lock that ends with the program. Raise OSError if it is taken."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
