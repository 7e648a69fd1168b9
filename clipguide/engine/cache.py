"""The cache of embeddings: one SQLite file for all models and commands.

A file is identified by its path, size, time and inode. If these have changed, it is identified by
the digest of its content. A vector is identified by that digest and the key of the model. Several
programs may read and write at the same time (write-ahead log). What a killed program has committed
stays.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ClipguideError

VERSION = 2
RACY = 2e9  # ns: a file that changed this shortly before it was read can change again unnoticed
TABLES = ("models", "names", "files", "vectors")
SCHEMA = """
CREATE TABLE IF NOT EXISTS models (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS names (
    model INTEGER, name TEXT NOT NULL, PRIMARY KEY (model, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, inode INTEGER, device INTEGER,
    seen INTEGER, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (
    digest BLOB, model INTEGER, vector BLOB NOT NULL, PRIMARY KEY (digest, model)) WITHOUT ROWID;
"""


def default_path() -> Path:
    """Return $CLIPGUIDE_CACHE, or clipguide in your cache folder. The file need not exist."""
    if folder := os.environ.get("CLIPGUIDE_CACHE"):
        return Path(folder) / "embeddings.sqlite"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "clipguide" / "embeddings.sqlite"


class Cache:
    """An open cache. The file is made if it does not exist. Threads may share it.

    Raises:
        ClipguideError: the file is not a cache of clipguide, or of a newer version.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._lock = threading.Lock()
        self._known: dict[int, tuple[str, str]] = {}  # keys and names by number
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise ClipguideError(
                    f"The cache {self.path} is of a newer clipguide: update clipguide, or give "
                    "--cache another file."
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            if version < VERSION:
                self._renew()
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or error
            damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(
                error, sqlite3.OperationalError
            )
            raise ClipguideError(
                f"The cache {self.path} cannot be used ({why}): {'remove it, ' * damaged}give "
                "--cache another file, or --no-cache."
            ) from None

    def model(self, key: str, name: str) -> int:
        """Return the number of a model, by its key (a fingerprint and settings). A number is never
        used again, even after `clear`. `name` is stored for `info`."""
        number = signed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
        self._known[number] = key, name
        with self._lock, self._db:
            self._introduce(number)
        return number

    def by_file(self, path: str, about: os.stat_result, model: int) -> np.ndarray | None:
        """Return the vector_D of a file that has not changed, or None."""
        return self._vector(
            "SELECT vector FROM files JOIN vectors USING (digest) WHERE path = ? AND size = ? AND "
            "changed = ? AND inode = ? AND device = ? AND seen - changed > ? AND model = ?",
            (_key(path), *_about(about), RACY, model),
        )

    def by_digest(self, digest: bytes, model: int) -> np.ndarray | None:
        """Return the vector_D of a content, or None."""
        return self._vector(
            "SELECT vector FROM vectors WHERE digest = ? AND model = ?", (digest, model)
        )

    def add(
        self, rows: Sequence[tuple[str, os.stat_result, int, bytes, np.ndarray]], model: int
    ) -> None:
        """Store rows (path, stat before it was read, time in ns before that, digest, vector_D), all
        or none."""
        with self._lock, self._db:
            self._introduce(model)
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(_key(p), *_about(about), seen, digest) for p, about, seen, digest, _ in rows],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                [(digest, model, vector.tobytes()) for *_, digest, vector in rows],
            )

    def info(self) -> dict:
        """Return the path, the bytes and the number of files, and for each model its names, its key
        and its number of vectors."""
        with self._lock:
            (files,) = self._db.execute("SELECT count(*) FROM files").fetchone()
            models = self._db.execute(
                "SELECT id, key, count(digest) FROM models LEFT JOIN vectors ON model = id "
                "GROUP BY id ORDER BY key"
            ).fetchall()
            names: dict[int, list[str]] = {number: [] for number, *_ in models}
            for number, name in self._db.execute("SELECT model, name FROM names ORDER BY name"):
                names[number].append(name)
        return {
            "path": str(self.path),
            "bytes": sum(f.stat().st_size for f in self._parts() if f.exists()),
            "files": files,
            "models": [
                {"name": " = ".join(names[i]), "names": names[i], "key": k, "vectors": v}
                for i, k, v in models
            ],
        }

    def clear(self) -> None:
        """Delete everything, and free the space."""
        with self._lock:
            with self._db:
                for table in TABLES:
                    self._db.execute(f"DELETE FROM {table}")
            self._db.execute("VACUUM")

    def close(self) -> None:
        self._db.close()

    def _introduce(self, model: int) -> None:
        """Store the key and name of a model, even if another program has emptied the file."""
        key, name = self._known[model]
        self._db.execute("INSERT OR IGNORE INTO models VALUES (?, ?)", (model, key))
        self._db.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (model, name))

    def _renew(self) -> None:
        """Delete what an older version stored: its fingerprints covered less. Only one program does
        it, once."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            if self._db.execute("PRAGMA user_version").fetchone()[0] < VERSION:
                for table in TABLES:
                    self._db.execute(f"DROP TABLE IF EXISTS {table}")
                self._db.execute(f"PRAGMA user_version={VERSION}")

    def _parts(self) -> list[Path]:
        return [self.path, *(Path(f"{self.path}{end}") for end in ("-wal", "-shm"))]

    def _vector(self, query: str, values: tuple) -> np.ndarray | None:
        with self._lock:
            row = self._db.execute(query, values).fetchone()
        return np.frombuffer(row[0], np.float32) if row else None


def _key(path: str) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _about(about: os.stat_result) -> tuple[int, int, int, int]:
    # SQLite's integers are signed, but the inodes of some file systems are not
    return about.st_size, about.st_mtime_ns, signed(about.st_ino), signed(about.st_dev)


def signed(number: int) -> int:
    """Return an unsigned 64-bit number as the signed number that SQLite and Lance store."""
    return (number + 2**63) % 2**64 - 2**63
