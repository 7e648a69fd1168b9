"""What an index knows of an image beside its vector, read while it is embedded."""

from __future__ import annotations

import hashlib
import io
import math
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
from ..reading import open_image, too_wordy, without_texts
from .places import is_url

SIDE = 192  # pixels of a thumbnail, at most
QUALITY = 80
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap the sides


@dataclass(frozen=True)
class Facts:
    """A file's own facts, of the moment `at` (ns) before it was looked at. `known`: its content
    seems to be that of an image in the index, from where all else is to be taken."""

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
    """A file's bytes, by whose name errors are reported."""

    name: str | Path


class Reader(Engine):
    """An engine that reads each file once, and leaves its facts in `facts` by path.

    An image whose digest is in `known` is not decoded: its vector is one of zeros, to be replaced.
    """

    def __init__(self, *args, known: Container[bytes] = (), **settings) -> None:
        super().__init__(*args, **{**settings, "verify": True})
        self.known = known
        self.facts: dict[str, Facts] = {}

    @classmethod
    def like(cls, engine: Engine, known: Container[bytes]) -> Reader:
        """A reader with all settings of an engine, its cache, and what it knows of bfloat16."""
        reader = cls.__new__(cls)
        vars(reader).update(vars(engine), verify=True, known=known, facts={})
        return reader

    def look(self, path: str) -> tuple[int, os.stat_result, bytes]:
        """A moment (ns), what is known of a file after it, and then its content."""
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
            settings = {"count": count, "side": side}
            settings["opened"] = lambda image: lease.take(images.cost(image))
            frames = self.decode(content, **settings)
            small = _small(frames[0])
            if read.known_D is None:
                read.frames = [self.clip.prepare(frame) for frame in frames]
        self.facts[path] = Facts(about, read.digest, at, **_head(found), thumbnail=small)
        return read

    def keep(self, reads: list) -> None:
        super().keep([(slot, read) for slot, read in reads if not self.facts[slot.path].known])


def _head(content: bytes) -> dict:
    """What the head says of an image that was decoded already: nothing is decoded again, and
    nothing that is odd is an error."""
    with _opened(content) as image:
        width, height = image.size
        found = {"format": image.format or "", "prompt": metadata.prompt(content)}
        try:
            # a PNG would be decoded to see whether EXIF follows the pixels
            exif = Image.Exif() if image.format == "PNG" and "exif" not in image.info else None
            exif = image.getexif() if exif is None else exif
            if exif.get(ExifTags.Base.Orientation) in TURNED:
                width, height = height, width
            found |= {"date": _date(exif), "camera": _camera(exif)}
        except Exception:  # Pillow raises what it likes at damaged EXIF
            pass
    return {**found, "width": width, "height": height}


def _opened(content: bytes) -> Image.Image:
    """An image of which the size was allowed; without the texts that Pillow refuses."""
    try:
        return open_image(io.BytesIO(content), megapixels=math.inf)
    except ValueError as error:
        if not too_wordy(error):
            raise
        return open_image(without_texts(content), megapixels=math.inf)


def _date(exif: Image.Exif) -> datetime | None:
    """DateTimeOriginal, else DateTime; None if it is no date, as 0000:00:00 is none."""
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    text = inner.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    try:
        return datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _camera(exif: Image.Exif) -> str | None:
    """Make and model, the make once; none where ComfyUI keeps its graph in their place."""
    make, model = (
        " ".join(str(exif.get(tag, "")).replace("\0", " ").split())
        for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
    )
    make, model = ("" if word.startswith(metadata.GRAPHS) else word for word in (make, model))
    name = model if model.lower().startswith(make.lower()) else f"{make} {model}"
    return _encodable(name.strip()) or None


def _small(picture: Image.Image) -> bytes:
    """A JPEG of at most SIDE pixels a side."""
    factor = -(-max(picture.size) // SIDE)
    if factor > 2:  # means of whole pixels: three times as quick as to resize
        picture = picture.reduce(factor)
    elif factor > 1:
        picture = picture.copy()
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
