"""What the table says of files when an update begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.cache import SETTLED, signed
from .store import TABLE, Store, text_of

INTEGERS = ("size", "mtime", "inode", "caption_mtime", "indexed_at")
MICROSECOND = 1000  # ns


@dataclass
class State:
    """Rows by number: their paths, digests and integers, the number of each path and digest, and
    which files of them were seen again."""

    paths: list[str]
    digests: list[bytes]
    captions: list[str | None]
    integers: dict[str, np.ndarray]
    rowids: np.ndarray
    version: int = 0

    def __post_init__(self) -> None:
        self.by_path = {path: row for row, path in enumerate(self.paths)}
        self.by_digest = {digest: row for row, digest in enumerate(self.digests)}
        self.seen = np.zeros(len(self.paths), bool)

    @classmethod
    def of(cls, store: Store, *, captions: bool) -> State:
        """That of a store now; with its captions if they are to be compared."""
        if store.table is None:
            return cls([], [], [], {}, np.zeros(0, np.int64))
        names = ["path", "digest", *INTEGERS, *(["caption"] if captions else [])]
        with store.told():
            version = store.table.version
            query = store.table.search().select(names).with_row_id(True).limit(None)
            found = query.to_arrow()
        return cls(
            found["path"].to_pylist(),
            found["digest"].to_pylist(),
            found["caption"].to_pylist() if captions else [],
            {name: found[name].cast("int64").fill_null(0).to_numpy() for name in INTEGERS},
            found["_rowid"].to_numpy(),
            version,
        )

    def row(self, path: str) -> int | None:
        """The row of a file."""
        return self.by_path.get(text_of(path))

    def unchanged(self, row: int, about: os.stat_result) -> bool:
        """Whether size, time and inode are as they were, and the file had settled by then."""
        of = {name: values[row] for name, values in self.integers.items()}
        return (
            of["size"] == about.st_size
            and of["mtime"] == about.st_mtime_ns // MICROSECOND
            and of["inode"] == signed(about.st_ino)
            and (of["indexed_at"] - of["mtime"]) * MICROSECOND > SETTLED
        )

    def records(self, store: Store, rows: list[int]) -> dict[int, dict[str, Any]]:
        """Whole rows by their numbers, as they were when this was read."""
        if not rows:
            return {}
        ids = {int(self.rowids[row]): row for row in rows}
        then = store.db.open_table(TABLE, version=self.version)
        found = then.take_row_ids(list(ids)).select(then.schema.names).with_row_id()
        return {ids[record.pop("_rowid")]: record for record in found.to_arrow().to_pylist()}
