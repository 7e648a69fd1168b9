"""The table of a collection: its columns, its version, who may write it, what is wrong with it.

LanceDB keeps it in a folder. Every change is one commit that is there or is not, so a program that
is killed loses only what it had not committed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ClipguideError, UsageError
from ..prompts import shorten

FORMAT = 1
TABLE, WORDS = "pictures", "background"
LOCK = ".writer"
HEADS = ("clipguide.format", "clipguide.key", "clipguide.model")
COLUMNS = (  # those that a --where may name, and that an answer has
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


def default_path() -> Path | str:
    """$CLIPGUIDE_DB, which may be a URI, or clipguide/pictures in the user's data folder; it need
    not exist."""
    if place := os.environ.get("CLIPGUIDE_DB"):
        return place if "://" in place else Path(place)
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "clipguide" / "pictures"


def lancedb() -> Any:
    """The module. UsageError where it is not installed."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are no news to a user
    try:
        import lancedb
    except ModuleNotFoundError:
        raise UsageError(
            "Search needs LanceDB, which is not installed: pip install 'clipguide[search]'."
        ) from None
    return lancedb


def schema(width: int, *, key: str, model: str) -> Any:
    """The Arrow schema of a collection of vectors of `width` numbers."""
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
        "prompt": pa.string(),  # of a PNG that clipguide made
        "caption": pa.string(),
        "caption_mtime": pa.int64(),  # ns, of the sidecar; -1 from a table, null without
        "thumbnail": pa.binary(),  # JPEG
        "indexed_at": pa.timestamp("us"),
    }
    metadata = dict(zip(HEADS, (str(FORMAT), key, model), strict=True))
    return pa.schema(list(kinds.items()), metadata=metadata)


class Store:
    """An index at `path`: the folder of a database, or a URI of one in object storage.

    `table` is None until it is made. ClipguideError if what is there cannot be used.
    """

    def __init__(self, path: str | os.PathLike, *, make: bool = False) -> None:
        self.path = os.fspath(path)
        self.table: Any = None
        if not self.remote and not Path(self.path).exists() and not make:
            raise UsageError(
                f"There is no index {self.path}: make it with clipguide index FOLDER{self.option}."
            )
        module = lancedb()
        if not self.remote and os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise UsageError(f"{self.path} is no folder, so it is no index: choose another --db.")
        if make and not self.remote:
            self._make_folder()
        with self.told():
            self.db = module.connect(self.path)
            if TABLE in tables(self.db):
                self.table = self.db.open_table(TABLE)
                self._check()
        if self.table is None and not make:
            if self._leftovers():
                raise ClipguideError(self._damaged("its table is gone"))
            raise UsageError(
                f"{self.path} holds no index of pictures: make it with clipguide index FOLDER"
                f"{self.option}."
            )

    @property
    def remote(self) -> bool:
        return "://" in self.path

    @property
    def option(self) -> str:
        """What names this index on the command line."""
        return "" if self.path == os.fspath(default_path()) else f" --db {self.path}"

    @property
    def key(self) -> str:
        """The engine's key by which its vectors were made."""
        return self._head(HEADS[1])

    @property
    def model(self) -> str:
        """The name of its CLIP."""
        return self._head(HEADS[2])

    def create(self, width: int, *, key: str, model: str) -> None:
        """Make the table."""
        with self.told(writing=True):
            self.table = self.db.create_table(TABLE, schema=schema(width, key=key, model=model))

    def notes(self) -> dict[str, str]:
        """What `note` wrote."""
        found = self.table.schema.field("vector").metadata or {}
        return {name.decode(): value.decode() for name, value in found.items()}

    def note(self, **facts: str) -> None:
        """Write facts about the collection beside its vectors."""
        with self.told(writing=True):
            self.table.update_field_metadata({"path": "vector", "metadata": facts})

    def count(self) -> int:
        """How many pictures it holds."""
        with self.told():
            return 0 if self.table is None else self.table.count_rows()

    def same_model(self, fingerprint: str, name: str) -> None:
        """UsageError if the vectors are of another CLIP than that one."""
        if self.key.split()[0] != fingerprint:
            raise UsageError(
                f"The index {self.path} was made by the CLIP {self.model}, and vectors of {name} "
                f"cannot be compared with its: give --clip {self.model}, or make another index by "
                f"clipguide index FOLDER --db OTHER --clip {name}."
            )

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Be the only one that writes. ClipguideError if another does, or nobody can."""
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

    @contextlib.contextmanager
    def told(self, *, writing: bool = False) -> Iterator[None]:
        """Turn what LanceDB raises into one sentence."""
        try:
            yield
        except ClipguideError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            words = reason(error)
            if writing and re.search(r"read-only|permission denied|no space|quota", words, re.I):
                raise ClipguideError(
                    f"The index {self.path} cannot be written ({words}): free some space, or "
                    "choose another --db. What was committed is kept."
                ) from error
            raise ClipguideError(self._damaged(words)) from error

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

    def _check(self) -> None:
        about = self.table.schema.metadata or {}
        if any(name.encode() not in about for name in HEADS):
            raise UsageError(f"{self.path} is not an index of clipguide's: choose another --db.")
        if not self._head(HEADS[0]).isdecimal() or int(self._head(HEADS[0])) > FORMAT:
            raise ClipguideError(
                f"The index {self.path} is of a newer clipguide: update clipguide, or choose "
                "another --db."
            )

    def _leftovers(self) -> bool:
        return not self.remote and os.path.isdir(os.path.join(self.path, f"{TABLE}.lance"))

    def _damaged(self, words: str) -> str:
        return (
            f"The index {self.path} is damaged ({words}): delete that folder, and index the "
            "pictures again."
        )


def text_of(path: str) -> str:
    """A path as UTF-8: bytes that are none are spelt out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def quote(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def reason(error: BaseException) -> str:
    """What LanceDB said, without its source files, types and full stop."""
    words = re.sub(r",? ?(?:\S*/)?(?:registry|rust|lance\S*)/\S+\.rs:\d+(?::\d+)?", "", str(error))
    words = re.sub(r"^(?:[A-Za-z]+ error|Invalid input|Invalid user input)[:,] ", "", words)
    return shorten(" ".join(words.split()) or type(error).__name__, 200).rstrip(".,: ")


def tables(db: Any) -> list[str]:
    """The names of a database's tables."""
    return list(db.list_tables().tables)


def _lock(stream: Any) -> None:
    """An exclusive lock that ends with the program, however it ends. OSError if it is taken."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
