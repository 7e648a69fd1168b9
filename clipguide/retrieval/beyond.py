"""The same update by many machines: Ray's actors hold the model, lance-ray writes fragments.

The driver lists the files and knows what is new. An actor makes of a block of names one fragment of
the table, a file that nobody sees until the driver commits it; so an actor that is killed loses
nothing, for Ray gives its block to another, and what it left is never part of the table.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..engine import Engine, find
from ..engine.cache import signed
from ..errors import ClipguideError, UsageError
from . import actors, cluster, index, remote, settle
from .actors import Digests, Job, Report
from .facts import GIVEN, Facts
from .remote import About, Captions, is_url
from .state import State
from .store import Store, default_path, quote, text_of

BLOCK = 1000  # pictures of a fragment, at most: what is done again if an actor dies
COMMIT, SECONDS = 20_000, 60.0  # pictures and seconds of a commit, at most
RETRIES = 3  # of a block whose actor dies: then its pictures are said to be bad
SHARES = 4  # blocks an actor, at least, so that none waits long for the last


def update(
    path: str | os.PathLike | None,
    sources: Sequence[str | os.PathLike],
    *,
    engine: Engine,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    trust_pickle: bool = False,
    recursive: bool = True,
    captions: str | os.PathLike | None = None,
    verify: bool = False,
    prune: bool = False,
    passed: list[str] | None = None,
) -> Iterator[index.Progress]:
    """As `retrieval.update`, by Ray: `sources` may be URLs of fsspec's too (s3://bucket/folder).

    `workers` actors (by default one a GPU of the cluster, or one a processor) load the engine's
    CLIP by its name on `device`, and decode by `threads` each. The cluster is that of $RAY_ADDRESS,
    or else this machine. The engine's cache is of one machine, and not used.

    UsageError where Ray is not installed, and as `retrieval.update`; ClipguideError if actors die
    over and over, or write where the driver does not see it.
    """
    for name, value in {"workers": workers, "threads": threads}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    cluster.modules()
    place = os.fspath(default_path() if path is None else path)
    store = Store(place if is_url(place) else os.path.abspath(place), make=True)
    urls = [str(source) for source in sources if is_url(source)]
    locals_ = [source for source in sources if not is_url(source)]
    folders = [os.path.abspath(source) for source in locals_ if os.path.isdir(source)]
    index._check_sources(store, locals_)
    listed = remote.Listing(urls, recursive=recursive, passed=passed)
    with store.writer():
        if store.table is not None:
            store.same_model(engine.clip.image_fingerprint, engine.clip.name)
            with store.told():
                store.table.checkout_latest()
        found = find(locals_, recursive=recursive, passed=passed)
        paths = [*dict.fromkeys(map(os.path.abspath, found)), *listed.files]
        told = Captions(captions, listed)
        state = State.of(store, captions=told.has_table)
        run = _Run(store, engine, told, state, folders)
        run.listed, run.wishes = listed, {"workers": workers, "threads": threads, "device": device}
        run.trust_pickle = trust_pickle
        yield from run.embed(paths, verify=verify)
        errors = run.remove(recursive=recursive, prune=prune)
        if store.table is not None:
            with store.told(writing=True):
                store.table.checkout_latest()
                settle.settle(store, engine.clip, changed=run.has_changed)
        yield run.progress(errors=errors)


class _Run(index._Run):
    """One update, of which actors do the reading."""

    listed: remote.Listing
    wishes: dict[str, Any]
    trust_pickle: bool = False

    def embed(self, paths: list[str], *, verify: bool) -> Iterator[index.Progress]:
        """Look at every file, have embedded what is new, commit now and then."""
        self.abouts: dict[str, About] = {}
        self.written: list[str] = []
        self.fragments: list[bytes] = []
        items: list[index._Item] = []
        unlike = list(self._unlike(paths, items, verify))
        self.total, self.work = len(paths), len(unlike)
        self.begin = begun = time.monotonic()
        reports = self._reports(unlike)
        while report := self._next(reports, items):
            self.read += report.count
            self._count(report, items)
            errors = [sentence for _, sentence in report.errors]
            for path, _ in report.errors:
                self._check_folder(path, items)
            full = len(self.written) + len(items) >= COMMIT
            kept: list[str] = []
            if full or time.monotonic() - begun > SECONDS:
                kept, items, begun = self._commit(items), [], time.monotonic()
            yield self.progress(kept=kept, errors=errors)
        yield self.progress(kept=self._commit(items))

    def remove(self, *, recursive: bool, prune: bool) -> list[str]:
        """As of folders, so of URLs: a listing tells what is gone."""
        errors = super().remove(recursive=recursive, prune=prune)
        gone: list[str] = []
        for folder, empty in self.listed.folders.items():
            inside = [
                path
                for path, seen in zip(self.state.paths, self.state.seen, strict=True)
                if not seen
                and path.startswith(folder)
                and (recursive or "/" not in path[len(folder) :])
            ]
            if inside and empty and not prune:
                errors.append(
                    f"{folder} is empty now, and the {len(inside)} pictures of it stay in the "
                    "index: --prune removes them."
                )
            else:
                gone += inside
        self._delete(gone)
        return errors

    def _next(self, reports: Iterator[Report], items: list) -> Report | None:
        """The next of the reports; if actors cannot go on, what they did is kept."""
        try:
            report = next(reports, None)
            if report is not None and report.refusal is not None:
                raise report.refusal
            return report
        except ClipguideError:
            self._commit(items)
            raise

    def _unlike(self, paths: list[str], items: list, verify: bool) -> Iterator[str]:
        """The files to be read, what is known of which goes to `abouts`."""
        for path in paths:
            row, about = self.state.row(path), self.listed.files.get(path)
            if row is not None:
                self.state.seen[row] = True
            try:
                about = about or About.of(os.stat(path))
            except (OSError, ValueError):  # whoever reads it says why it cannot
                self.abouts[path] = About(0, 0, 0)
                yield path
                continue
            if row is None or verify or not self.state.unchanged(row, about):
                self.abouts[path] = about
                yield path
            elif self._same_caption(path, row):
                self.counts["same"] += 1
            else:
                self.counts["changed"] += 1
                known = Facts(about, self.state.digests[row], known=True)
                items.append(self._copy(path, known, row))

    def _count(self, report: Report, items: list) -> None:
        """What is new, changed, moved, the same or bad."""
        for path in report.written:
            self.counts["new" if self.state.row(path) is None else "changed"] += 1
        for path, digest in report.known:
            items.append(self._item(path, Facts(self.abouts[path], digest, known=True), None))
        self.counts["failed"] += len(report.errors)
        self.written += report.written
        self.fragments += report.fragments

    def _commit(self, items: list) -> list[str]:
        """Make visible what the actors wrote, by one commit, and write copies of known rows."""
        written, fragments = self.written, self.fragments
        self.written, self.fragments = [], []
        if fragments:
            self._publish([pickle.loads(fragment) for fragment in fragments], written)
        return written + super()._commit(items)

    def _publish(self, fragments: list, written: list[str]) -> None:
        """One commit: rows of the same paths go, the fragments come."""
        import lance

        store = self.store
        uri, options = _where(store.table)
        if not store.remote:
            _check_seen(uri, fragments)
        with store.told(writing=True):
            dataset = lance.dataset(uri, storage_options=options)
            again = [path for path in written if self.state.row(path) is not None]
            left, removed = _without(dataset, again)
            change = lance.LanceOperation.Append(fragments)
            if again:
                change = lance.LanceOperation.Update(
                    removed_fragment_ids=removed, updated_fragments=left, new_fragments=fragments
                )
            lance.LanceDataset.commit(
                uri, change, read_version=dataset.version, storage_options=options
            )
            store.table.checkout_latest()

    def _reports(self, unlike: list[str]) -> Iterator[Report]:
        """What actors made of the files, block by block, as they are done."""
        if not unlike:
            return
        ray, engine, store = cluster.modules(), self.reader, self.store
        self._make_ready()
        with (
            cluster.cluster(ray, self.wishes["workers"], self.wishes["threads"]),
            cluster.told(store),
        ):
            share = cluster.share(ray, **self.wishes)
            size = -(-len(unlike) // (share.workers * SHARES))
            size = min(max(size, engine.batch), BLOCK)
            blocks = [self._block(unlike[i : i + size]) for i in range(0, len(unlike), size)]
            ledger = cluster.ledger(ray, Digests.of(self.state.digests), RETRIES)
            count = {"min_size": 1, "initial_size": share.workers, "max_size": share.workers}
            done = ray.data.from_arrow(blocks).map_batches(
                actors.Worker,
                fn_constructor_args=[self._job(share), ledger],
                compute=ray.data.ActorPoolStrategy(**count),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=share.threads,
                num_gpus=share.gpus or None,
            )
            for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                for report in batch["report"].to_pylist():
                    yield pickle.loads(report)

    def _block(self, paths: list[str]) -> Any:
        """Files as an actor is told of them."""
        import pyarrow as pa

        rows = []
        for path in paths:
            about, stamp = self.abouts[path], self.captions.stamp(path)
            given = self.captions.text(path) if stamp == GIVEN else None
            facts = [about.st_size, about.st_mtime_ns, signed(about.st_ino), given, stamp]
            rows.append([os.fsencode(path), *facts])
        names = {"path": pa.binary(), "size": pa.int64(), "mtime": pa.int64(), "inode": pa.int64()}
        names |= {"caption": pa.string(), "stamp": pa.int64()}
        columns = [pa.array(column, kind) for column, kind in zip(zip(*rows), names.values())]
        return pa.table(columns, names=list(names))

    def _job(self, share: SimpleNamespace) -> Job:
        import lance

        engine = self.reader
        uri, options = _where(self.store.table)
        names = ("batch", "fast", "alpha", "frames")
        return Job(
            clip=_absolute(engine.clip.name),
            key=engine.key,
            device=share.device,
            trust_pickle=self.trust_pickle,
            settings={
                **{n: getattr(engine, n) for n in names},
                "bf16": engine._to_check,
                "compile": engine._to_compile,
                "workers": share.threads,
            },
            uri=uri,
            schema=self.store.table.schema,
            storage=lance.dataset(uri, storage_options=options).data_storage_version,
        )


def _absolute(name: str) -> str:
    """A CLIP's name that means the same in another folder."""
    source, at, suffix = name, "", ""
    if "@" in name and not os.path.exists(name):
        source, at, suffix = name.rpartition("@")
    return f"{os.path.abspath(source)}{at}{suffix}" if os.path.exists(source) else name


def _where(table: Any) -> tuple[str, dict | None]:
    return table.uri, table.latest_storage_options()


def _without(dataset: Any, paths: list[str]) -> tuple[list, list[int]]:
    """The fragments of a dataset that have rows of `paths`, without these, and the numbers of those
    of which nothing is left."""
    left, removed = [], []
    if not paths:
        return left, removed
    rule = f"path IN ({', '.join(quote(text_of(path)) for path in paths)})"
    for fragment in dataset.get_fragments():
        before = fragment.count_rows()
        after = fragment.delete(rule)
        if after is None:
            removed.append(fragment.fragment_id)
        elif after.num_rows != before:
            left.append(after)
    return left, removed


def _check_seen(uri: str, fragments: list) -> None:
    """ClipguideError if actors wrote to disks of their own."""
    for file in (file for fragment in fragments for file in fragment.files):
        if not os.path.exists(os.path.join(uri, "data", file.path)):
            raise ClipguideError(
                f"The workers wrote to a folder {Path(uri).parent} that is not this machine's: "
                "give a --db that every machine sees, as s3://bucket/index or on a shared disk."
            )
