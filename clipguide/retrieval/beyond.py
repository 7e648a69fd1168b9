"""Update an index with many machines. Actors of Ray hold the model, and write fragments of the
table.

The driver lists the files and compares them with the index. An actor turns a block of names into
one fragment of the table. The fragment is a file that nobody sees until the driver commits it. If
an actor is killed, nothing is lost: another actor gets its block, and its own file never becomes a
part of the table.

LanceDB compacts and indexes on the driver, as for a local table. lance-ray would distribute this,
but it commits without `Store`, which tells conflicts from faults, and it needs Ray Data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..engine import Engine, find
from ..errors import ClipguideError, UsageError
from . import actors, cluster, index, remote
from .captions import Captions
from .changes import Update, staying
from .items import Item, Listed, Progress, Work
from .lookup import Spool, chunks, inside
from .places import check_sources, default_path, is_url
from .store import Store, quote, text_of

BLOCK = 1000  # largest number of images in a fragment, which is repeated if an actor dies
COMMIT, SECONDS = 20_000, 60.0  # largest number of images and seconds per commit
# settings of the driver's engine
SETTINGS = ("batch", "fast", "alpha", "frames", "icc", "megapixels")
SHARES = 4  # smallest number of blocks per actor, so that none waits long for the last one


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
) -> Iterator[Progress]:
    """Update an index like `retrieval.update`, with actors of Ray.

    Args:
        sources: folders, files and patterns, or URLs of fsspec such as s3://bucket/folder.
        workers: the number of actors; by default one for each GPU of the cluster, or for each
            processor. Each loads the CLIP of the engine by its name.
        device: the device of each actor.
        threads: the number of decoding threads of each actor.

    The cluster is that of $RAY_ADDRESS, or this machine. The cache of the engine is not used,
    because it belongs to one machine.

    Raises:
        UsageError: Ray is not installed; or as `retrieval.update`.
        ClipguideError: actors die repeatedly, or write where the driver cannot read.
    """
    for name, value in {"workers": workers, "threads": threads}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    ray = cluster.modules()
    place = os.fspath(default_path() if path is None else path)
    local, urls = remote.split(sources)
    check_sources(local, place)
    store = Store(place if is_url(place) else os.path.abspath(place), make=True)
    folders = [os.path.abspath(source) for source in local if os.path.isdir(source)]
    job = RayUpdate(store, engine, Captions(captions), folders, verify=verify)
    job.ray, job.trust_pickle = ray, trust_pickle
    job.wishes = {"workers": workers, "threads": threads, "device": device}
    job.listing = remote.Listing(urls, recursive=recursive, passed=passed, walked=job.walked)

    def listed() -> Iterator[Listed]:
        found = find(local, recursive=recursive, passed=passed, unread=job.unread)
        yield from map(Listed, map(os.path.abspath, found))
        yield from job.listing

    yield from index.run(job, listed(), recursive, prune)


class RayUpdate(Update):
    """An update in which actors read the files."""

    ray: Any
    listing: remote.Listing
    wishes: dict[str, Any]
    trust_pickle: bool = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.missing = Spool()  # rows of URLs that were not listed: path, folder, is it empty
        self.written: list[Work] = []
        self.new: list = []  # fragments

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.missing.close()

    def walked(self, folder: str, names: set[str], is_empty: bool) -> None:
        """Note the rows of a folder of URLs. Its listing came without them."""
        if self.store.table is None:
            return
        home = text_of(folder)
        rule = f"{inside(home)} AND folder = {quote(home[:-1])}"
        listed = set(map(text_of, names))
        for batch in self.store.batches(["path"], rule):
            for path in set(batch["path"].to_pylist()) - listed:
                self.missing.add((path, home, is_empty))

    def embed(self) -> Iterator[Progress]:
        """Embed what is new on a cluster, if there is anything new."""
        if not len(self.to_read):
            yield from super().embed()
            return
        wishes = self.wishes
        with (
            cluster.cluster(self.ray, wishes["workers"], wishes["threads"]),
            cluster.explained(self.store),
        ):
            yield from super().embed()

    def read(self, works: Spool, known: Container[bytes]) -> Iterator[Progress]:
        """Let actors read and embed files, and commit what they write."""
        self.make_ready()
        share = cluster.share(self.ray, **self.wishes)
        size = -(-len(works) // (share.workers * SHARES))
        size = min(max(size, self.engine.batch), BLOCK)
        job, lent = self._job(share), self.ray.put(known)
        worker = self.ray.remote(num_cpus=share.threads, num_gpus=share.gpus)(actors.Worker)
        crew = cluster.Crew(self.ray, lambda: worker.remote(job, lent), share.workers)
        items: list[Item] = []
        begun = time.monotonic()
        try:
            for block, report in crew.run(chunks(works, size)):
                self.done += len(block)
                errors = self._count(report, items) if report else self._killed(block)
                full = len(self.written) + len(items) >= COMMIT
                kept: list[str] = []
                if full or time.monotonic() - begun > SECONDS:
                    kept, items, begun = self.commit(items), [], time.monotonic()
                yield self.progress(kept=kept, errors=errors)
        except (ClipguideError, self.ray.exceptions.RayError):
            self.commit(items)
            raise
        finally:
            crew.close()
        yield self.progress(kept=self.commit(items))

    def remove(self, *, recursive: bool, prune: bool) -> list[str]:
        """Remove deleted URLs, as for folders. The listing shows which are gone."""
        errors = super().remove(recursive=recursive, prune=prune)
        gone, stay = [], {}
        for path, home, is_empty in self.missing:
            if prune or not is_empty:
                gone.append(path)
            else:
                stay[home, "is empty now"] = stay.get((home, "is empty now"), 0) + 1
        roots = self.listing.roots if recursive and self.store.table is not None else ()
        closed = tuple(map(text_of, self.listing.unread))
        for root in roots:
            for batch in self.store.batches(["path", "folder"], inside(text_of(root))):
                for path, home in zip(batch["path"].to_pylist(), batch["folder"].to_pylist()):
                    if f"{home}/" in self.listing.folders or path.startswith(closed):
                        continue
                    if prune:
                        gone.append(path)
                    else:
                        stay[home, "is not there"] = stay.get((home, "is not there"), 0) + 1
        self.forget(list(dict.fromkeys(gone)))
        why = "cannot be listed: what the index holds of it stays."
        errors += [f"{folder} {why}" for folder in closed]
        return errors + [staying(home, why, count) for (home, why), count in stay.items()]

    def caption(self, work: Work) -> str | None:
        return remote.caption(work)

    def commit(self, items: Sequence[Item]) -> list[str]:
        """Publish the fragments of the actors in one commit, and write copies of known rows."""
        written, fragments = self.written, self.new
        self.written, self.new = [], []
        if fragments:
            self.publish(fragments, [text_of(work.path) for work in written if work.had])
            self.committed([text_of(work.path) for work in written], len(fragments))
        return [work.path for work in written] + super().commit(items)

    def publish(self, fragments: list, again: list[str]) -> None:
        """Commit once: delete the rows of the paths `again`, and add the fragments."""
        import lance

        uri, options = _where(self.store.table)
        if not self.store.remote:
            _check_seen(uri, fragments)

        def change(_: Any) -> None:
            dataset = lance.dataset(uri, storage_options=options)
            operation = lance.LanceOperation.Append(fragments)
            if again:
                left, removed = self._without(dataset, again)
                operation = lance.LanceOperation.Update(
                    removed_fragment_ids=removed, updated_fragments=left, new_fragments=fragments
                )
            lance.LanceDataset.commit(
                uri, operation, read_version=dataset.version, storage_options=options
            )

        self.store.write(change)
        self.store.refresh()

    def _without(self, dataset: Any, paths: list[str]) -> tuple[list, list[int]]:
        """Return the fragments of a dataset that have rows of `paths`, without these rows, and the
        numbers of the fragments that become empty. The addresses of the rows give the fragments."""
        self.store.refresh()
        found = self.store.find("path", paths, ["path"])
        places: dict[int, list[str]] = {}
        for rowid, path in zip(found["_rowid"].to_pylist(), found["path"].to_pylist()):
            places.setdefault(rowid >> 32, []).append(path)
        left, removed = [], []
        for number, some in places.items():
            rule = f"path IN ({', '.join(map(quote, some))})"
            fragment = dataset.get_fragment(number).delete(rule)
            if fragment is None:
                removed.append(number)
            else:
                left.append(fragment)
        return left, removed

    def _count(self, report: actors.Report, items: list[Item]) -> list[str]:
        """Count the results of a report. Return its errors."""
        for work in report.written:
            self.counts["changed" if work.had else "new"] += 1
        items += [Item(work, facts) for work, facts in report.known]
        for path, _ in report.errors:
            self.check_folder(path, items)
        self.counts["failed"] += len(report.errors)
        self.written += report.written
        self.new += report.fragments
        return [sentence for _, sentence in report.errors]

    def _killed(self, block: list[Work]) -> list[str]:
        self.counts["failed"] += len(block)
        return [f"{work.path} cannot be read: workers died over it." for work in block]

    def _job(self, share: Any) -> actors.Job:
        import lance

        engine = self.engine
        uri, options = _where(self.store.table)
        return actors.Job(
            clip=engine.clip_name,
            key=engine.key,
            device=share.device,
            trust_pickle=self.trust_pickle,
            settings={
                **{name: getattr(engine, name) for name in SETTINGS},
                "bf16": engine.encoder.to_check,
                "compile": engine.encoder.to_compile,
                "workers": share.threads,
            },
            uri=uri,
            schema=self.store.table.schema,
            storage=lance.dataset(uri, storage_options=options).data_storage_version,
            options=options,
        )


def _where(table: Any) -> tuple[str, dict | None]:
    return table.uri, table.latest_storage_options()


def _check_seen(uri: str, fragments: list) -> None:
    """Raise ClipguideError if the actors wrote to disks of their own machines."""
    for file in (file for fragment in fragments for file in fragment.files):
        if not os.path.exists(os.path.join(uri, "data", file.path)):
            raise ClipguideError(
                f"The workers wrote to a folder {Path(uri).parent} that is not this machine's: "
                "give a --db that every machine sees, as s3://bucket/index or on a shared disk."
            )
