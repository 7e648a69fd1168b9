"""Write images into a table, and keep the table equal to the folders.

A file is unchanged if its size, time and inode are unchanged. Otherwise its digest is compared, and
only new content is embedded. Files are listed and compared in chunks, and the tasks are stored on
disk, so memory does not grow with the number of files. Committed rows are never lost. A run that
was stopped continues.
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
    """Bring an index up to date with folders, files and patterns.

    It yields a Progress from time to time. The last one has the totals.

    Args:
        path: the folder of the index; the default index of this user if None.
        sources: folders, files and patterns, as in `clipguide.engine.find`.
        engine: the engine that embeds the images.
        recursive: whether subfolders are indexed too.
        captions: the captions of the images, as `Captions(path)` reads them from a table with the
            columns `path` and `caption`.
        verify: whether every file is read and digested again.
        prune: whether rows of deleted files are removed even if their folder is missing or empty. A
            folder that cannot be read keeps its rows. Without `prune`, rows are removed only if
            their folder is there and is not empty.
        passed: a list that receives the files in the folders that are not images.

    Raises:
        UsageError: a source is missing, no caption belongs to an image, or the index was made by
            another CLIP.
        ClipguideError: another program is writing, the index cannot be written, or a folder
            disappears during the update.
    """
    place = default_path() if path is None else path
    check_sources(sources, place)
    store = Store(place, make=True)
    folders = [os.path.abspath(source) for source in sources if os.path.isdir(source)]
    job = Update(store, engine, Captions(captions), folders, verify=verify)
    found = find(sources, recursive=recursive, passed=passed, unread=job.unread)
    yield from run(job, (Listed(os.path.abspath(path)) for path in found), recursive, prune)


def run(job: Update, listed: Iterable[Listed], recursive: bool, prune: bool) -> Iterator[Progress]:
    """Run an update, from the listing to the maintenance of the table."""
    store, clip = job.store, job.engine.clip
    with store.writer(), job:
        if store.table is not None:
            store.refresh()
            store.same_model(clip.image_fingerprint, clip.name)
            if not job.engine.encoder.to_check:  # bfloat16 is known after the first images
                job.check_settings()
            if not clips.there(store.model) or lasting_name(store.model) != store.model:
                store.note(model=job.engine.clip_name)
        job.compare(listed)
        yield from job.embed()
        errors = job.remove(recursive=recursive, prune=prune)
        if store.table is not None:
            maintenance.maintain(store, clip, changed=job.has_changed)
        yield job.progress(errors=errors)
