"""Update a table once: compare it with the listed files, embed and commit new images, remove
deleted ones."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from .. import tables
from ..engine import Engine
from ..errors import ClipguideError, ClipguideWarning, UsageError
from . import captions, lookup, maintenance
from .captions import GIVEN, Captions
from .facts import Facts, Reader
from .items import COPIED, Item, Listed, Progress, Work, arrow, row_of
from .lookup import Digests, Row, Spool, chunks
from .store import CHUNK, Store, text_of

ROWS, SECONDS = 1000, 10.0  # largest number per commit
# files of the table between two compactions; a file of Lance has up to a million rows
FRAGMENTS = 1000


class Update:
    """One update of `store` by `engine`. Call `compare`, `embed` and `remove`, in this order.

    Use it as a context, which deletes its temporary files. Rows are removed only below `folders`,
    and not below `unread`, the folders that could not be listed.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        captions: Captions,
        folders: Sequence[str],
        *,
        verify: bool = False,
    ) -> None:
        self.store, self.engine, self.captions, self.verify = store, engine, captions, verify
        self.folders = [os.path.join(folder, "") for folder in folders]
        self.unread: list[str] = []
        self.counts = dict.fromkeys(("new", "changed", "moved", "same", "gone", "failed"), 0)
        self.to_read, self.to_copy, self.to_read_again = Spool(), Spool(), Spool()
        self.total = self.done = 0
        self.fragments = 0
        self.begin = time.monotonic()
        self._waiting = 0
        self._key = lambda: engine.key
        self._spelt: set[str] = set()  # for names that are not UTF-8

    def __enter__(self) -> Update:
        return self

    def __exit__(self, *_: object) -> None:
        for spool in (self.to_read, self.to_copy, self.to_read_again):
            spool.close()

    @property
    def key(self) -> str:
        """Return the key of the vectors."""
        return self._key()

    @property
    def has_changed(self) -> bool:
        return any(self.counts[name] for name in ("new", "changed", "moved", "gone"))

    def compare(self, listed: Iterable[Listed]) -> None:
        """Look at every file, and write the list of tasks to disk.

        Raises:
            UsageError: there are captions, but none belongs to an image.
        """
        for part in chunks(listed, CHUNK):
            rows = lookup.rows(self.store, [one.path for one in part])
            for one in part:
                self.total += 1
                self._compare(one, rows.get(text_of(one.path)))
        if self.captions.texts and self.total and not self.captions.used:
            raise UsageError(
                f"{self.captions.share} belong to an image here: its paths are relative to the "
                "folder that it is in, and their letters and endings count."
            )
        if len(self.captions.used) < len(self.captions.texts):
            warnings.warn(
                f"{self.captions.share} belong to an image here.", ClipguideWarning, stacklevel=2
            )

    def embed(self) -> Iterator[Progress]:
        """Embed new images and copy known ones. Commit from time to time."""
        self.begin = time.monotonic()
        self._waiting = len(self.to_read) + len(self.to_copy)
        for part in chunks(self.to_copy, ROWS):
            self.done += len(part)
            self.counts["changed"] += len(part)
            yield self.progress(kept=self.commit([Item(work, work.facts) for work in part]))
        if len(self.to_read):
            yield from self.read(self.to_read, Digests.of(self.store))
        if len(self.to_read_again):
            self._waiting += len(self.to_read_again)
            yield from self.read(self.to_read_again, ())

    def read(self, works: Iterable[Work], known: Container[bytes]) -> Iterator[Progress]:
        """Read, embed and commit. Content in `known` is not embedded."""
        reader = Reader.like(self.engine, known)
        self._key = lambda: reader.key  # it changes if bfloat16 is not exact enough
        waiting: deque[Work] = deque()

        def names() -> Iterator[str]:
            for work in works:
                waiting.append(work)
                yield work.path

        items: list[Item] = []
        errors: list[str] = []
        begun = time.monotonic()
        for embedded in reader.embed(names()):
            work, facts = waiting.popleft(), reader.facts.pop(embedded.path, None)
            self.done += 1
            if embedded.error is None:
                items.append(Item(work, facts, None if facts.known else embedded.unit_D))
            else:
                self.check_folder(embedded.path, items)
                self.counts["failed"] += 1
                errors.append(embedded.error)
            if len(items) >= ROWS or time.monotonic() - begun > SECONDS:
                yield self.progress(kept=self.commit(items), errors=errors)
                items, errors, begun = [], [], time.monotonic()
            elif self.done % reader.batch == 0:
                yield self.progress(errors=errors)
                errors = []
        yield self.progress(kept=self.commit(items), errors=errors)

    def progress(self, *, kept: Sequence[str] = (), errors: Sequence[str] = ()) -> Progress:
        """Return the progress."""
        seconds = time.monotonic() - self.begin
        rate = self.done / seconds if seconds else 0.0
        waiting = self._waiting - self.done
        return Progress(
            total=self.total,
            done=self.total - waiting,
            rate=rate,
            left=waiting / rate if rate else 0.0,
            kept=list(kept),
            errors=list(errors),
            **self.counts,
        )

    def remove(self, *, recursive: bool, prune: bool) -> list[str]:
        """Delete the rows of deleted files. Return a sentence for each folder whose rows stay: a
        missing or empty folder, unless `prune`, and a folder that cannot be read."""
        unread = [os.path.abspath(folder) for folder in self.unread]
        closed = tuple(os.path.join(text_of(folder), "") for folder in unread)
        gone: dict[str, None] = {}
        stay: dict[tuple[str, str], int] = {}
        state = lru_cache(CHUNK)(_state)
        for folder in filter(os.path.isdir, self.folders if self.store.table is not None else ()):
            for batch in self.store.batches(["path"], lookup.inside(text_of(folder))):
                for path in batch["path"].to_pylist():
                    home = os.path.dirname(path)
                    if path.startswith(closed) or path in self._spelt or os.path.lexists(path):
                        continue
                    if not recursive and os.path.join(home, "") != folder:
                        continue
                    why = None if prune else state(home)
                    if why is None:
                        gone[path] = None
                    else:
                        stay[home, why] = stay.get((home, why), 0) + 1
        self.forget(list(gone))
        return [
            *(f"{folder} cannot be read: what the index holds of it stays." for folder in unread),
            *(staying(home, why, count) for (home, why), count in stay.items()),
        ]

    def forget(self, paths: Sequence[str]) -> None:
        """Delete the rows of deleted files."""
        self.store.delete(paths)
        self.counts["gone"] += len(paths)

    def commit(self, items: Sequence[Item]) -> list[str]:
        """Write all items or none. Return their paths. Content that seemed known, but is not, is
        read again."""
        if not items:
            return []
        if any(item.unit_D is not None for item in items):
            self.make_ready()
        records, paths = self._records(items), []
        if records:
            paths = [record["path"] for record in records]
            rows = arrow(records, self.store.table.schema)
            self.write(rows, merge=any(i.work.had for i in items))
        wrote = set(paths)
        return [item.work.path for item in items if text_of(item.work.path) in wrote]

    def write(self, rows: Any, *, merge: bool) -> None:
        """Write rows in one commit. With `merge`, they replace the rows of the same paths."""

        def change(table: Any) -> None:
            if merge:
                join = table.merge_insert("path").when_matched_update_all()
                join.when_not_matched_insert_all().execute(rows)
            else:
                table.add(rows)

        self.store.write(change)
        self.committed(rows["path"].to_pylist())

    def committed(self, paths: Sequence[str], fragments: int = 1) -> None:
        """Finish a commit: merge rows that another program wrote at the same time, and compact if
        there are many files."""
        if self.store.remote:  # if no lock excludes other programs
            self.store.refresh()
            lookup.rows(self.store, paths)
        self.fragments += fragments
        if self.fragments >= FRAGMENTS:
            self.fragments = 0
            maintenance.compact(self.store)

    def make_ready(self) -> None:
        """Make the table if there is none. Raise UsageError if the embeddings differ from those in
        the table."""
        store, clip = self.store, self.engine.clip
        if store.table is None:
            store.create(clip.embed_dim, key=self.key, model=self.engine.clip_name)
        self.check_settings()

    def check_settings(self) -> None:
        """Raise UsageError if the images of the table were embedded by other settings."""
        if self.store.key != self.key:
            raise UsageError(
                f"The images in the index {self.store.path} were embedded by other settings "
                "(--alpha, --frames, --fast, --bf16 or a dtype): repeat those, or choose another "
                "--db."
            )

    def _compare(self, one: Listed, row: Row | None) -> None:
        path, about = one.path, one.about
        if (text := text_of(path)) != path:
            self._spelt.add(text)
        at = one.at or time.time_ns()
        stamp = one.stamp if about is not None else captions.stamp(path)
        caption = self.captions[path]
        if caption is not None:
            stamp = GIVEN
        elif stamp is None and row is not None and row.caption_mtime == GIVEN:
            stamp, caption = GIVEN, row.caption  # from a table that is not given this time
        work = Work(path, at, about, stamp, caption, row is not None)
        try:
            about = about or os.stat(path)
        except (OSError, ValueError):  # the reader reports why it cannot
            self.to_read.add(work)
            return
        if row is None or self.verify or not row.unchanged(about):
            self.to_read.add(work)
        elif row.caption_mtime != (stamp or 0) or (stamp == GIVEN and row.caption != caption):
            facts = Facts(about, row.digest, at, known=True)
            self.to_copy.add(Work(path, at, one.about, stamp, caption, True, facts))
        else:
            self.counts["same"] += 1

    def _records(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Return items as rows. Note those whose content is not known after all."""
        known = {item.facts.digest for item in items if item.facts.known}
        mine = {text_of(item.work.path) for item in items}
        of = lookup.contents(self.store, sorted(known), mine)
        records = []
        for item in items:
            work, facts = item.work, item.facts
            place = text_of(work.path)
            if not facts.known:
                self.counts["changed" if work.had else "new"] += 1
                record = {name: getattr(facts, name) for name in COPIED}
                record |= {"digest": facts.digest, "vector": item.unit_D.numpy()}
            elif facts.digest in of:
                record = dict(of[facts.digest].get(place) or next(iter(of[facts.digest].values())))
                self._count_known(work, record)
            else:
                self.to_read_again.add(work)
                continue
            records.append(record | row_of(place, facts.about, work.stamp, facts.at))
            records[-1]["caption"] = self.caption(work)
        return records

    def caption(self, work: Work) -> str | None:
        """Return the caption of an image."""
        if work.stamp is None or work.stamp == GIVEN:
            return work.caption
        return tables.sidecar(work.path)

    def _count_known(self, work: Work, record: dict[str, Any]) -> None:
        if work.facts is not None:  # only the caption has changed; it is counted
            return
        if record["path"] == text_of(work.path):
            self.counts["same"] += 1
        elif work.had:
            self.counts["changed"] += 1
        else:
            self.counts["new" if os.path.lexists(record["path"]) else "moved"] += 1

    def check_folder(self, path: str, items: list[Item]) -> None:
        """Raise ClipguideError if not only a file is gone, but its folder too. Committed rows stay.
        """
        for folder in self.folders:
            if path.startswith(folder) and not os.path.isdir(folder):
                self.commit(items)
                raise ClipguideError(
                    f"The folder {folder} vanished while it was indexed: what was indexed of it is "
                    "kept; repeat the command when it is back."
                )


def staying(folder: str, why: str, count: int) -> str:
    """Return the sentence about rows that stay."""
    many = "1 image of it stays" if count == 1 else f"{count} images of it stay"
    return f"{folder} {why}, and {many} in the index: --prune removes what is not there."


def _state(folder: str) -> str | None:
    """Return why the rows of a folder stay, or None if the folder exists and is not empty."""
    try:
        return None if os.listdir(folder) else "is empty now"
    except OSError:
        return "is not there"
