"""Embed image files: threads decode while the model computes, in batches that fit the memory.

Shapes: B images, F frames, D the width of the embedding.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import images
from ..clip import Clip, lasting_name
from ..errors import ClipguideError, ClipguideWarning
from ..mini import sha256
from ..reading import foreign_profile
from . import settings
from .cache import Cache
from .download import download, why
from .encoder import Encoder
from .files import URLS
from .resources import Budget, Lease, processors

if TYPE_CHECKING:
    from PIL.Image import Image

AHEAD = 4  # batches that are decoded ahead
WAITING = 2048  # files per lookup, so that a new file does not delay the cached ones


@dataclass(frozen=True)
class Embedded:
    """The path of a file and its unit embedding_D (float32, on the CPU), or the reason why it has
    none."""

    path: str
    unit_D: torch.Tensor | None
    error: str | None = None


@dataclass
class Slot:
    """A file in progress: its vector is known, or a thread reads its pixels."""

    path: str
    about: os.stat_result | None = None
    seen: int = 0  # ns, before `about`
    reading: Future | None = None
    done: Embedded | None = None


@dataclass
class Read:
    """The result of a thread: a vector from the cache, or prepared frames."""

    digest: bytes = b""
    known_D: np.ndarray | None = None
    frames: list = field(default_factory=list)


class Engine:
    """Embed image files with one CLIP.

    Args:
        clip: the CLIP.
        cache: keeps embeddings between runs.
        batch: the number of images in a batch; by default 16 on a CPU and 256 elsewhere. It is
            halved when memory runs out.
        workers: the number of decoding threads; by default the number of processors that this
            program may use. If the large images that they decode do not fit into memory together,
            a thread waits for another.
        fast: whether JPEGs are decoded at an eighth, a quarter or half of their size where that is
            enough for the CLIP.
        alpha: what becomes of transparency: "white" lays the image on white, "drop" drops the alpha
            channel, as open_clip does.
        frames: the number of evenly spread frames of a moving image whose embeddings are averaged.
        verify: whether unchanged files are read and digested again, instead of compared by size and
            time.
        bf16: whether to compute in bfloat16. If the cosine similarities of the first images change
            by more than 1e-3, the engine warns and keeps the dtype of the CLIP.
        compile: whether to compile the image encoder with torch.compile.
        urls: whether URLs are downloaded.
        icc: whether colours of other profiles are converted to sRGB.
        megapixels: images with more pixels are not read; 179 by default.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        cache: Cache | None = None,
        batch: int | None = None,
        workers: int | None = None,
        fast: bool = False,
        alpha: str = "white",
        frames: int = 1,
        verify: bool = False,
        bf16: bool = False,
        compile: bool = False,
        urls: bool = False,
        icc: bool = False,
        megapixels: float | None = None,
    ) -> None:
        settings.check(batch=batch, workers=workers, frames=frames, alpha=alpha)
        self.clip, self.cache = clip, cache
        self.encoder = Encoder(clip, batch=batch, bf16=bf16, compile=compile)
        self.workers = workers or processors()
        self.icc, self.megapixels, self.memory = icc, megapixels, Budget()
        self.profiles: dict[str, str] = {}  # profiles by path, for images that are not sRGB
        self.fast, self.alpha, self.frames = fast, alpha, frames
        self.verify, self.urls = verify, urls

    @property
    def batch(self) -> int:
        """Return the number of images in a batch. It falls when memory runs out."""
        return self.encoder.batch

    @property
    def key(self) -> str:
        """Return the key of the cache: the fingerprint of the CLIP and all that changes embeddings.
        """
        fast = f" fast {self.clip.image_size}" if self.fast else ""
        icc = " icc" if self.icc else ""
        how = f"{self.encoder.dtype} alpha {self.alpha} frames {self.frames}{fast}{icc}"
        return f"{self.clip.image_fingerprint} {how}"

    @property
    def clip_name(self) -> str:
        """Return the name of the CLIP with absolute paths, which is valid in any folder."""
        return lasting_name(self.clip.name)

    def embed(self, paths: Iterable[str | os.PathLike]) -> Iterator[Embedded]:
        """Yield the embedding of each file, or why it has none, in the order of `paths`.

        Memory does not grow with the number of files.

        Raises:
            ClipguideError: one image alone needs more memory than there is.
        """
        waiting: deque[Slot] = deque()
        unread = 0
        self.model_number = self._number()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for path in paths:
                    slot = self.start(os.fspath(path), pool)
                    waiting.append(slot)
                    unread += slot.done is None
                    if unread >= AHEAD * self.batch or len(waiting) >= WAITING:
                        unread -= self._run(waiting)
                    while waiting and waiting[0].done:
                        yield waiting.popleft().done
                while waiting:
                    self._run(waiting)
                    while waiting and waiting[0].done:
                        yield waiting.popleft().done
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _number(self) -> int | None:
        return self.ask("model", self.key, self.clip_name)

    def ask(self, what: str, *values: object) -> Any:
        """Return the answer of the cache, or None without a cache. A full, read-only or damaged
        disk disables the cache, but does not end the run."""
        if self.cache is None:
            return None
        try:
            return getattr(self.cache, what)(*values)
        except sqlite3.Error as error:
            warnings.warn(
                f"The cache {self.cache.path} cannot be used any more ({error}), so clipguide goes "
                "on without.",
                ClipguideWarning,
                stacklevel=2,
            )
            self.cache = None
            return None

    def start(self, path: str, pool: ThreadPoolExecutor) -> Slot:
        """Return a slot with the vector of the cache, or one for a thread to read."""
        if path.lower().startswith(URLS):
            if not self.urls:
                return _failed(path, "is a URL, which is read only where that is allowed")
            return Slot(path, reading=pool.submit(self.read, path, None))
        seen = time.time_ns()
        try:
            about = os.stat(path)
        except FileNotFoundError:
            return Slot(path, done=Embedded(path, None, f"There is no file {path}."))
        except (OSError, ValueError) as error:
            return _failed(path, f"cannot be read: {why(error)}")
        if not stat.S_ISREG(about.st_mode):
            what = "is a folder" if stat.S_ISDIR(about.st_mode) else "is not a file"
            return _failed(path, what)
        if not self.verify:
            known_D = self.ask("by_file", path, about, self.model_number)
            if known_D is not None:
                return Slot(path, done=Embedded(path, torch.from_numpy(known_D.copy())))
        return Slot(path, about, seen, pool.submit(self.read, path, about))

    def read(self, path: str, about: os.stat_result | None) -> Read:
        """Return the digest of a file and its frames as the encoder sees them. It runs in a thread.
        """
        read = Read()
        source = download(path) if about is None else path
        if self.cache is not None and about is not None:
            read.digest = bytes.fromhex(sha256(Path(path)))
            read.known_D = self.ask("by_digest", read.digest, self.model_number)
        if read.known_D is None:
            with self.memory.lease() as lease:
                pictures = self.decode(source, opened=partial(self._opened, path, lease))
                read.frames = [self.clip.prepare(picture) for picture in pictures]
            if read.digest and not _same(about, os.stat(path)):  # written to while it was read
                read.digest = b""
        return read

    def _opened(self, path: str, lease: Lease, image: Image, _: tuple[int, int]) -> None:
        """Prepare to decode an image: wait for its memory, note its profile."""
        lease.take(images.cost(image))
        if self.verify and not self.icc and (profile := foreign_profile(image)):
            self.profiles[path] = profile

    def decode(self, source: object, **other: Any) -> list:
        """Return the RGB frames of an image, by the settings of the engine.

        `other` are settings of `load_frames`.
        """
        given = {"count": self.frames, "alpha": self.alpha, "icc": self.icc}
        given |= {"megapixels": self.megapixels}
        given["side"] = self.clip.image_size if self.fast else None
        return images.load_frames(source, **{**given, **other})

    def _run(self, waiting: deque[Slot]) -> int:
        """Encode the first batch of the waiting files. Return their number."""
        slots = [slot for slot in waiting if slot.done is None][: self.batch]
        reads = []
        for slot in slots:
            try:
                read = slot.reading.result()
            except ClipguideError as error:
                slot.done = Embedded(slot.path, None, str(error))
                continue
            # an error of the transform or the memory fails one file, not the run
            except Exception as error:
                slot.done = _failed(slot.path, f"cannot be read: {why(error)}").done
                continue
            if read.known_D is not None:
                slot.done = Embedded(slot.path, torch.from_numpy(read.known_D.copy()))
            reads.append((slot, read))
        new = [(slot, read) for slot, read in reads if read.known_D is None]
        if new:
            unit_BD = self._encode([read.frames for _, read in new]).float().cpu()
            for (slot, _), unit_D in zip(new, unit_BD):
                slot.done = Embedded(slot.path, unit_D.clone())
        self.keep(reads)
        for slot in slots:
            slot.reading = None
        return len(slots)

    def keep(self, reads: list[tuple[Slot, Read]]) -> None:
        """Store in the cache the vectors of files that did not change while they were read."""
        rows = [
            (slot.path, slot.about, slot.seen, read.digest, slot.done.unit_D.numpy())
            for slot, read in reads
            if read.digest
        ]
        if rows:
            self.ask("add", rows, self.model_number)

    def _encode(self, frames: Sequence[list]) -> torch.Tensor:
        """Return unit vectors_BD of the frames of images. The key of the cache may change in this
        call."""
        key = self.key
        unit_BD = self.encoder(frames)
        if self.key != key:
            self.model_number = self._number()
        return unit_BD


def _failed(path: str, what: str) -> Slot:
    return Slot(path, done=Embedded(path, None, f"{path} {what}."))


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    names = ("st_size", "st_mtime_ns", "st_ino", "st_dev")
    return all(getattr(one, name) == getattr(other, name) for name in names)
