"""Images into a table, and the table kept as the folders are.

A file is unchanged if its size, time of change and inode are; else its digest is compared, and only
content that is new is embedded. Files are listed and compared in chunks, and what is to be done is
kept on disk, so that memory does not grow with their number. What is committed is never lost, and a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from ..clip import lasting_name
from ..engine import Engine, find
from . import clips, maintenance
from .captions import Captions
from .changes import Update
from .items import Listed, Progress
from .places import check_sources, default_path
from .store import Store


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

    Rows of files that are gone are deleted if they lay in a folder below `sources` that is there
    and is not empty; with `prune`, whatever has become of the folder, unless it cannot be read.
    With `verify` every file is digested again. `captions` is a table of them: see `Captions`. What
    else is in folders is noted in `passed`.

    UsageError for a source that is not there, captions of which none belongs to an image here, or
    an index of another CLIP; ClipguideError if another program writes, the index cannot be written,
    or a folder vanishes meanwhile.
    """
    place = default_path() if path is None else path
    check_sources(sources, place)
    store = Store(place, make=True)
    folders = [os.path.abspath(source) for source in sources if os.path.isdir(source)]
    job = Update(store, engine, Captions(captions), folders, verify=verify)
    found = find(sources, recursive=recursive, passed=passed, unread=job.unread)
    yield from run(job, (Listed(os.path.abspath(path)) for path in found), recursive, prune)


def run(job: Update, listed: Iterable[Listed], recursive: bool, prune: bool) -> Iterator[Progress]:
    """An update from its listing to the care of the table."""
    store, clip = job.store, job.engine.clip
    with store.writer(), job:
        if store.table is not None:
            store.refresh()
            store.same_model(clip.image_fingerprint, clip.name)
            if not clips.there(store.model) or lasting_name(store.model) != store.model:
                store.note(model=job.engine.clip_name)
        job.compare(listed)
        yield from job.embed()
        errors = job.remove(recursive=recursive, prune=prune)
        if store.table is not None:
            maintenance.maintain(store, clip, changed=job.has_changed)
        yield job.progress(errors=errors)
