"""Pictures into a table, and the table kept as the folders are.

A file is unchanged if its size, time of change and inode are; else its digest is compared, and only
content that is new is embedded. What is committed is never lost, and a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..engine import Engine, find
from ..engine.cache import signed
from ..errors import ClipguideError, UsageError
from . import settle
from .facts import GIVEN, Captions, Facts, Reader
from .state import MICROSECOND, State
from .store import Store, default_path, quote, text_of

if TYPE_CHECKING:
    import torch

ROWS, SECONDS = 1000, 10.0  # of a commit, at most
TOGETHER = 500  # paths of one deletion
COPIED = ("width", "height", "format", "date", "camera", "prompt", "thumbnail")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an update is: pictures of each kind so far, `done` of `total` looked at.

    `kept` are the paths that the last commit acknowledged, `errors` what could not be read since
    the last Progress, each one sentence. `rate` is in pictures a second, `left` in seconds.
    """

    total: int
    done: int
    new: int = 0
    changed: int = 0
    moved: int = 0
    same: int = 0
    gone: int = 0
    failed: int = 0
    rate: float = 0.0
    left: float = 0.0
    kept: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class _Item:
    """A picture to be written: with a vector, or else as a copy of a row of the state."""

    path: str
    facts: Facts
    caption: str | None
    stamp: int | None
    unit_D: torch.Tensor | None = None
    row: int | None = None


def update(
    path: str | os.PathLike | None,
    sources: Sequence[str | os.PathLike],
    *,
    engine: Engine,
    recursive: bool = True,
    captions: str | os.PathLike | None = None,
    verify: bool = False,
    prune: bool = False,
    passed: list[str] | None = None,
) -> Iterator[Progress]:
    """Bring the index at `path` (by default the user's) up to date with folders, files and
    patterns, with a Progress now and then; the last is the sum.

    Rows of files that are gone are deleted if they lie in a folder of `sources` that is there and,
    unless `prune`, is not empty. With `verify` every file is digested again. `captions` is a table
    of them: see `Captions`. What else is in folders is noted in `passed`.

    UsageError for a source that is not there or an index of another CLIP; ClipguideError if another
    program writes, the index cannot be written, or a folder vanishes meanwhile.
    """
    store = Store(default_path() if path is None else path, make=True)
    folders = [os.path.abspath(source) for source in sources if os.path.isdir(source)]
    _check_sources(store, sources)
    told = Captions(captions)
    with store.writer():
        if store.table is not None:
            store.same_model(engine.clip.image_fingerprint, engine.clip.name)
            with store.told():
                store.table.checkout_latest()
        found = find(sources, recursive=recursive, passed=passed)
        paths = list(dict.fromkeys(map(os.path.abspath, found)))
        run = _Run(store, engine, told, State.of(store, captions=told.has_table), folders)
        yield from run.embed(paths, verify=verify)
        errors = run.remove(recursive=recursive, prune=prune)
        if store.table is not None:
            with store.told(writing=True):
                settle.settle(store, engine.clip, changed=run.has_changed)
        yield run.progress(errors=errors)


def _check_sources(store: Store, sources: Sequence[str | os.PathLike]) -> None:
    for source in map(os.fspath, sources):
        if os.path.lexists(source) or set("*?[") & set(source):
            continue
        held = 0
        if store.table is not None:
            start = quote(text_of(os.path.join(os.path.abspath(source), "")))
            with store.told():
                held = store.table.count_rows(f"starts_with(path, {start})")
        kept = f" The {held} pictures of it that are in the index stay there." if held else ""
        raise UsageError(f"There is no folder or file {source}.{kept}")


class _Run:
    """One update."""

    def __init__(
        self, store: Store, engine: Engine, captions: Captions, state: State, folders: list[str]
    ) -> None:
        self.store, self.captions, self.state, self.folders = store, captions, state, folders
        self.reader = Reader.like(engine, state.by_digest)
        self.counts = dict.fromkeys(("new", "changed", "moved", "same", "gone", "failed"), 0)
        self.total = self.work = self.read = 0
        self.begin = time.monotonic()

    @property
    def has_changed(self) -> bool:
        return any(self.counts[name] for name in ("new", "changed", "moved", "gone"))

    def embed(self, paths: list[str], *, verify: bool) -> Iterator[Progress]:
        """Look at every file, embed what is new, commit now and then."""
        items: list[_Item] = []
        unlike = list(self._unlike(paths, items, verify))
        self.total, self.work = len(paths), len(unlike)
        self.begin = begun = time.monotonic()
        errors: list[str] = []
        for embedded in self.reader.embed(unlike):
            self.read += 1
            facts = self.reader.facts.pop(embedded.path, None)
            if embedded.error is None:
                items.append(self._item(embedded.path, facts, embedded.unit_D))
            else:
                self._check_folder(embedded.path, items)
                self.counts["failed"] += 1
                errors.append(embedded.error)
            if len(items) >= ROWS or time.monotonic() - begun > SECONDS:
                kept = self._commit(items)
                yield self.progress(kept=kept, errors=errors)
                items, errors, begun = [], [], time.monotonic()
            elif self.read % self.reader.batch == 0:
                yield self.progress(errors=errors)
                errors = []
        yield self.progress(kept=self._commit(items), errors=errors)

    def progress(self, *, kept: Sequence[str] = (), errors: Sequence[str] = ()) -> Progress:
        """How far it is."""
        seconds = time.monotonic() - self.begin
        rate = self.read / seconds if seconds else 0.0
        waiting = self.work - self.read
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
        """Delete the rows of files that are gone; sentences about those of emptied folders, which
        stay."""
        inside = [text_of(os.path.join(f, "")) for f in self.folders if os.path.isdir(f)]
        gone, empty = [], {}
        for path, seen in zip(self.state.paths, self.state.seen, strict=True):
            if seen or not path.startswith(tuple(inside)) or os.path.lexists(path):
                continue
            if not recursive and os.path.join(os.path.dirname(path), "") not in inside:
                continue
            here = _nearest(os.path.dirname(path))
            if prune or os.listdir(here):
                gone.append(path)
            else:
                empty[here] = empty.get(here, 0) + 1
        self._delete(gone)
        return [
            f"{folder} is empty now, and the {count} pictures of it stay in the index, for it may "
            "be a disk that is not there: --prune removes them."
            for folder, count in empty.items()
        ]

    def _delete(self, paths: list[str]) -> None:
        """Delete the rows of files that are gone."""
        with self.store.told(writing=True):
            for first in range(0, len(paths), TOGETHER):
                some = ", ".join(map(quote, paths[first : first + TOGETHER]))
                self.store.table.delete(f"path IN ({some})")
        self.counts["gone"] += len(paths)

    def _unlike(self, paths: list[str], items: list[_Item], verify: bool) -> Iterator[str]:
        """The files to be read; those of which only the caption changed become items."""
        state = self.state
        for path in paths:
            row = state.row(path)
            if row is None:
                yield path
                continue
            state.seen[row] = True
            try:
                about = os.stat(path)
            except (OSError, ValueError):
                yield path  # whoever reads it says why it cannot
                continue
            if verify or not state.unchanged(row, about):
                yield path
            elif self._same_caption(path, row):
                self.counts["same"] += 1
            else:
                self.counts["changed"] += 1
                items.append(self._copy(path, Facts(about, state.digests[row], known=True), row))

    def _same_caption(self, path: str, row: int) -> bool:
        stamp, was = self.captions.stamp(path), self.state.integers["caption_mtime"][row]
        if stamp == GIVEN:
            return was == GIVEN and self.state.captions[row] == self.captions.text(path)
        return was == (stamp or 0) or (was == GIVEN and stamp is None)

    def _item(self, path: str, facts: Facts, unit_D: torch.Tensor) -> _Item:
        """A picture that was read: new, changed, moved, or only touched."""
        state, row = self.state, self.state.row(path)
        if not facts.known:
            self.counts["new" if row is None else "changed"] += 1
            caption, stamp = self.captions.text(path), self.captions.stamp(path)
            return _Item(path, facts, caption, stamp, unit_D)
        if row is not None and state.digests[row] == facts.digest:
            self.counts["same"] += 1
            return self._copy(path, facts, row)
        other = state.by_digest[facts.digest]
        there = os.path.lexists(state.paths[other])
        self.counts["changed" if row is not None else "new" if there else "moved"] += 1
        return self._copy(path, facts, other)

    def _copy(self, path: str, facts: Facts, row: int) -> _Item:
        return _Item(path, facts, self.captions.text(path), self.captions.stamp(path), row=row)

    def _commit(self, items: list[_Item]) -> list[str]:
        """Write items, all or none; their paths."""
        if not items:
            return []
        store = self.store
        self._make_ready(embedded=any(item.row is None for item in items))
        with store.told(writing=True):
            rows = self._rows(items)
            if any(self.state.row(item.path) is not None for item in items):
                merge = store.table.merge_insert("path").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(rows)
            else:
                store.table.add(rows)
        return [item.path for item in items]

    def _make_ready(self, *, embedded: bool = True) -> None:
        """Make the table if there is none. UsageError if what was `embedded` is unlike the rest."""
        store, engine = self.store, self.reader
        if store.table is None:
            store.create(engine.clip.embed_dim, key=engine.key, model=engine.clip.name)
        elif embedded and store.key != engine.key:
            raise UsageError(
                f"The pictures in the index {store.path} were embedded by other settings "
                "(--alpha, --frames, --fast, --bf16 or a dtype): repeat those, or choose another "
                "--db."
            )

    def _rows(self, items: list[_Item]) -> Any:
        """Items as a table of Arrow."""
        import pyarrow as pa

        now = datetime.now(timezone.utc).replace(tzinfo=None)
        old = self.state.records(self.store, [item.row for item in items if item.row is not None])
        records = []
        for item in items:
            facts, about, was = item.facts, item.facts.about, old.get(item.row)
            record = was and dict(was) or {name: getattr(facts, name) for name in COPIED}
            if was is None:
                record |= {"digest": facts.digest, "vector": item.unit_D.numpy()}
            place = text_of(item.path)
            stays = was and was["path"] == place and was["caption_mtime"] == GIVEN
            if not stays or item.stamp is not None:
                record |= {"caption": item.caption, "caption_mtime": item.stamp}
            record |= {"path": place, "folder": text_of(os.path.dirname(item.path))}
            record |= {"size": about.st_size, "mtime": about.st_mtime_ns // MICROSECOND}
            record |= {"inode": signed(about.st_ino), "indexed_at": now}
            records.append(record)
        schema = self.store.table.schema
        columns = [pa.array([r[f.name] for r in records], f.type) for f in schema]
        return pa.table(columns, schema=schema)

    def _check_folder(self, path: str, items: list[_Item]) -> None:
        """ClipguideError if not only a file but its whole folder is gone; what was done is kept."""
        for folder in self.folders:
            if path.startswith(os.path.join(folder, "")) and not os.path.isdir(folder):
                self._commit(items)
                raise ClipguideError(
                    f"The folder {folder} vanished while it was indexed: what was indexed of it is "
                    "kept; repeat the command when it is back."
                )


def _nearest(folder: str) -> str:
    """The folder, or the nearest above it that is there."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
