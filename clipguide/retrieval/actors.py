"""The actors of Ray. Each holds the model, and turns a block of files into one fragment."""

from __future__ import annotations

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..clip import load_clip
from ..engine.engine import Slot
from ..errors import ClipguideError
from . import remote
from .facts import Facts, Reader
from .items import COPIED, Work, arrow, row_of
from .places import is_url
from .store import text_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """The task of an actor, as values that can be sent."""

    clip: str
    key: str
    device: str
    trust_pickle: bool
    settings: dict[str, Any]
    uri: str
    schema: Any
    storage: str
    options: dict[str, str] | None


@dataclass
class Report:
    """The result of a block: the files in `fragments`, the files whose content seems to be in the
    index already, and one sentence for each file that cannot be read."""

    written: list[Work] = field(default_factory=list)
    fragments: list = field(default_factory=list)
    known: list[tuple[Work, Facts]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.written) + len(self.known) + len(self.errors)


class Worker:
    """An actor. It holds the model, and turns a block of files into one fragment of the table."""

    def __init__(self, job: Job, known: Container[bytes]) -> None:
        self.job, self.known = job, known

    def ready(self) -> None:
        """Load the model. Raise ClipguideError if it is not the model of the driver."""
        job = self.job
        clip = load_clip(job.clip, device=job.device, trust_pickle=job.trust_pickle)
        if clip.image_fingerprint != job.key.split()[0]:
            raise ClipguideError(
                f"The CLIP {job.clip} on a worker is another than the driver's: give it by a name "
                "or folder that is the same on every machine."
            )
        self.reader = RemoteReader(clip, known=self.known, **job.settings)

    def embed(self, block: Sequence[Work]) -> Report:
        """Read and embed files, and write their fragment."""
        from lance.fragment import write_fragments

        report, records, job = Report(), [], self.job
        works = self.reader.works = {work.path: work for work in block}
        for embedded in self.reader.embed(works):
            path, facts = embedded.path, self.reader.facts.pop(embedded.path, None)
            if embedded.error is not None:
                report.errors.append((path, embedded.error))
            elif facts.known:
                report.known.append((works[path], facts))
            else:
                report.written.append(works[path])
                records.append(_record(works[path], facts, embedded.unit_D))
        if records:
            if self.reader.key != job.key:
                raise ClipguideError("bfloat16 does not hold for these images: leave out --bf16.")
            report.fragments = write_fragments(
                arrow(records, job.schema),
                job.uri,
                schema=job.schema,
                mode="append",
                data_storage_version=job.storage,
                storage_options=job.options,
            )
        return report


class RemoteReader(Reader):
    """A reader of files and of fsspec URLs. The listing has given the size and time of the URLs."""

    works: dict[str, Work]

    def start(self, path: str, pool: ThreadPoolExecutor) -> Slot:
        if not is_url(path):
            return super().start(path, pool)
        work = self.works[path]
        return Slot(path, work.about, work.at, pool.submit(self.read, path, work.about))

    def look(self, path: str) -> tuple[int, Any, bytes]:
        if not is_url(path):
            return super().look(path)
        work = self.works[path]
        return work.at, work.about, remote.content(path)


def _record(work: Work, facts: Facts, unit_D: Any) -> dict[str, Any]:
    """Return a row of the table."""
    record = {name: getattr(facts, name) for name in COPIED}
    record |= row_of(text_of(work.path), facts.about, work.stamp, facts.at)
    return record | {
        "digest": facts.digest,
        "vector": unit_D.numpy(),
        "caption": remote.caption(work),
    }
