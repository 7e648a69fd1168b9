"""The facts that an index keeps about an image besides its vector. They are read while it is
embedded."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from .. import images, metadata
from ..engine import Engine
from ..engine.engine import Read
from .places import is_url

SIDE = 192  # largest side of a thumbnail in pixels
QUALITY = 80
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Facts:
    """The facts of a file at the moment `at` (ns), before it was read. With `known`, its content
    seems to be in the index, and the other facts come from there."""

    about: os.stat_result
    digest: bytes
    at: int
    known: bool = False
    width: int = 0
    height: int = 0
    format: str = ""
    date: datetime | None = None
    camera: str | None = None
    prompt: str | None = None
    thumbnail: bytes | None = None


class _File(io.BytesIO):
    """The bytes of a file, with its name for errors."""

    name: str | Path


class Reader(Engine):
    """An engine that reads each file once, and stores its facts in `facts` by path.

    An image whose digest is in `known` is not decoded. Its vector is zero, and is replaced later.
    """

    def __init__(self, *args, known: Container[bytes] = (), **settings) -> None:
        super().__init__(*args, **{**settings, "verify": True})
        self.known = known
        self.facts: dict[str, Facts] = {}

    @classmethod
    def like(cls, engine: Engine, known: Container[bytes]) -> Reader:
        """Return a reader with the settings and the cache of an engine, and with its test of
        bfloat16."""
        reader = cls.__new__(cls)
        vars(reader).update(vars(engine), verify=True, known=known, facts={})
        return reader

    def look(self, path: str) -> tuple[int, os.stat_result, bytes]:
        """Return the time (ns), the facts, and then the content of a file."""
        return time.time_ns(), os.stat(path), Path(path).read_bytes()

    def read(self, path: str, about: os.stat_result) -> Read:
        at, about, found = self.look(path)
        content = _File(found)
        content.name = path if is_url(path) else Path(path)
        read = Read(hashlib.sha256(content.getbuffer()).digest())
        if read.digest in self.known:
            read.known_D = np.zeros(self.clip.embed_dim, np.float32)
            self.facts[path] = Facts(about, read.digest, at, known=True)
            return read
        if self.cache is not None:
            read.known_D = self.ask("by_digest", read.digest, self.model_number)
        side = SIDE if read.known_D is not None else self.clip.image_size if self.fast else None
        count = self.frames if read.known_D is None else 1
        with self.memory.lease() as lease:
            head: dict = {}

            def opened(image: Image.Image, size: tuple[int, int]) -> None:
                lease.take(images.cost(image))
                head.update(_head(image, size, found))

            frames = self.decode(content, count=count, side=side, opened=opened)
            if not head.pop("reduced"):
                head["width"], head["height"] = frames[0].size
            small = _small(frames[0])
            if read.known_D is None:
                read.frames = [self.clip.prepare(frame) for frame in frames]
        self.facts[path] = Facts(about, read.digest, at, **head, thumbnail=small)
        return read

    def keep(self, reads: list) -> None:
        super().keep([(slot, read) for slot, read in reads if not self.facts[slot.path].known])


def _head(image: Image.Image, size: tuple[int, int], content: bytes) -> dict:
    """Return the facts in the header of an image that is not decoded yet, and whether it will be
    decoded at less than its size. Unusual values are not errors."""
    width, height = size
    found = {"format": image.format or "", "prompt": metadata.prompt(content, image=image)}
    found["reduced"] = image.size != size
    try:
        # otherwise Pillow decodes a PNG to look for EXIF after the pixels
        exif = Image.Exif() if image.format == "PNG" and "exif" not in image.info else None
        exif = image.getexif() if exif is None else exif
        if exif.get(ExifTags.Base.Orientation) in TURNED:
            width, height = height, width
        found |= {"date": _date(exif), "camera": _camera(exif)}
    except Exception:  # Pillow raises various errors for damaged EXIF
        pass
    return {**found, "width": width, "height": height}


def _date(exif: Image.Exif) -> datetime | None:
    """Return DateTimeOriginal, else DateTime, or None if it is not a date, such as 0000:00:00."""
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    text = inner.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    try:
        return datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _camera(exif: Image.Exif) -> str | None:
    """Return make and model, without a repeated make. ComfyUI stores its graph in these fields:
    then None."""
    make, model = (
        " ".join(str(exif.get(tag, "")).replace("\0", " ").split())
        for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
    )
    make, model = ("" if word.startswith(metadata.GRAPHS) else word for word in (make, model))
    name = model if model.lower().startswith(make.lower()) else f"{make} {model}"
    return _encodable(name.strip()) or None


def _small(picture: Image.Image) -> bytes:
    """Return a JPEG of at most SIDE pixels per side."""
    factor = -(-max(picture.size) // SIDE)
    if factor > 2:  # means over whole pixels: three times as fast as resizing
        picture = picture.reduce(factor)
    elif factor > 1:
        picture = picture.copy()
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
