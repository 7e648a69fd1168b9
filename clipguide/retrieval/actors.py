"""What Ray's actors do: each holds the model, and makes of a block of files one fragment."""

from __future__ import annotations

import hashlib
import os
import pickle
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from .. import images
from ..clip import load_clip
from ..engine.cache import signed
from ..engine.engine import Read, _Slot
from ..errors import ClipguideError
from . import remote
from .facts import GIVEN, Facts, Reader, _File, _head, _small
from .index import COPIED
from .remote import About, is_url
from .state import MICROSECOND
from .store import text_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an actor is to do, of things that travel."""

    clip: str
    key: str
    device: str
    trust_pickle: bool
    settings: dict[str, Any]
    uri: str
    schema: Any
    storage: str


@dataclass
class Report:
    """What became of a block: the paths in `fragments` (pickled metadata), (path, digest) of files
    whose content is in the index already, (path, sentence) of those that cannot be read, and why an
    actor cannot go on at all."""

    written: list[str] = field(default_factory=list)
    fragments: list[bytes] = field(default_factory=list)
    known: list[tuple[str, bytes]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    refusal: ClipguideError | None = None

    @property
    def count(self) -> int:
        return len(self.written) + len(self.known) + len(self.errors)


class Worker:
    """An actor: it holds the model, and makes of a block of files one fragment of the table."""

    def __init__(self, job: Job, ledger: Any) -> None:
        self.job, self.ledger = job, ledger
        self.refusal: ClipguideError | None = None
        try:
            self._load()
        except ClipguideError as error:  # Ray would pass on its traceback alone
            self.refusal = error

    def _load(self) -> None:
        import ray
        from lance_ray import LanceFragmentWriter

        job = self.job
        clip = load_clip(job.clip, device=job.device, trust_pickle=job.trust_pickle)
        if clip.image_fingerprint != job.key.split()[0]:
            raise ClipguideError(
                f"The CLIP {job.clip} on a worker is another than the driver's: give it by a name "
                "or folder that is the same on every machine."
            )
        known = ray.get(*ray.get(self.ledger.known.remote()))
        self.reader = _Reader(clip, known=known, **job.settings)
        self.writer = LanceFragmentWriter(
            job.uri, schema=job.schema, data_storage_version=job.storage
        )

    def __call__(self, block: Any) -> Any:
        """A table of files into one of one Report, pickled."""
        import pyarrow as pa

        report = Report(refusal=self.refusal)
        if self.refusal is None:
            try:
                self._embed({os.fsdecode(row["path"]): row for row in block.to_pylist()}, report)
            except ClipguideError as error:
                report = Report(refusal=error)
        return pa.table({"report": [pickle.dumps(report)]})

    def _embed(self, told: dict[str, dict], report: Report) -> None:
        """Read and embed files, and write the fragment of them."""
        import pyarrow as pa
        import ray

        if deaths := ray.get(self.ledger.deaths.remote(min(told))):
            why = f"a worker died {deaths} times over it or one of the {len(told) - 1} beside it"
            report.errors = [(path, f"{path} cannot be read: {why}.") for path in told]
            return
        self.reader.abouts = {
            path: About(row["size"], row["mtime"], row["inode"]) for path, row in told.items()
        }
        records = []
        for embedded in self.reader.embed(told):
            path, facts = embedded.path, self.reader.facts.pop(embedded.path, None)
            if embedded.error is not None:
                report.errors.append((path, embedded.error))
            elif facts.known:
                report.known.append((path, facts.digest))
            else:
                report.written.append(path)
                records.append(_record(path, facts, told[path], embedded.unit_D.numpy()))
        if not records:
            return
        if self.reader.key != self.job.key:
            raise ClipguideError("bfloat16 does not hold for these pictures: leave out --bf16.")
        schema = self.job.schema
        columns = [pa.array([r[f.name] for r in records], f.type) for f in schema]
        written = self.writer(pa.table(columns, schema=schema))
        report.fragments = written["fragment"].to_pylist()


class _Reader(Reader):
    """A reader of files and of fsspec's URLs, of which the driver has told size and time."""

    abouts: dict[str, About]

    def _start(self, path: str, pool: ThreadPoolExecutor) -> _Slot:
        if not is_url(path):
            return super()._start(path, pool)
        about = self.abouts[path]
        return _Slot(path, about, pool.submit(self._read, path, about))

    def _read(self, path: str, about: Any) -> Read:
        about = self.abouts[path]
        if not is_url(path):
            return super()._read(path, about)
        content = _File(remote.content(path))
        content.name = path
        read = Read(hashlib.sha256(content.getbuffer()).digest())
        if read.digest in self.known:
            read.known_D = np.zeros(self.clip.embed_dim, np.float32)
            self.facts[path] = Facts(about, read.digest, known=True)
            return read
        side = self.clip.image_size if self.fast else None
        frames = images.load_frames(content, count=self.frames, alpha=self.alpha, side=side)
        self.facts[path] = Facts(about, read.digest, **_head(content), thumbnail=_small(frames[0]))
        read.frames = [self.clip.prepare(frame) for frame in frames]
        return read


class Digests:
    """Digests of 32 bytes in a block of memory that actors of a machine share; `in` is a binary
    search."""

    def __init__(self, sorted_N32: np.ndarray) -> None:
        self.sorted_N32 = sorted_N32

    @classmethod
    def of(cls, digests: Sequence[bytes]) -> Digests:
        return cls(np.frombuffer(b"".join(sorted(digests)), np.uint8).reshape(-1, 32))

    def __len__(self) -> int:
        return len(self.sorted_N32)

    def __getitem__(self, i: int) -> bytes:
        return self.sorted_N32[i].tobytes()

    def __contains__(self, digest: object) -> bool:
        i = bisect_left(self, digest)
        return i < len(self) and self[i] == digest


def _record(path: str, facts: Facts, told: dict, unit_D: np.ndarray) -> dict[str, Any]:
    """A row of the table."""
    record = {name: getattr(facts, name) for name in COPIED}
    caption = told["caption"]
    if told["stamp"] not in (None, GIVEN):
        caption = remote.sidecar(path)
    return record | {
        "digest": facts.digest,
        "vector": unit_D,
        "caption": caption,
        "caption_mtime": told["stamp"],
        "path": text_of(path),
        "folder": text_of(os.path.dirname(path)),
        "size": facts.about.st_size,
        "mtime": facts.about.st_mtime_ns // MICROSECOND,
        "inode": signed(facts.about.st_ino),
        "indexed_at": datetime.now(timezone.utc).replace(tzinfo=None),
    }
