"""Inspect images and texts before the training: whether they can be read, and which texts are cut.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from .. import images
from ..engine.files import URLS
from ..errors import UsageError
from ..prompts import shorten
from . import duplicates
from .tables import Row

LOOK = 128  # smallest side in pixels at which a JPEG is decoded for the inspection
TOGETHER = 256  # texts per batch


def inspect(
    rows: Sequence[Row], workers: int, progress: Callable[[int, int], None] | None
) -> list[tuple[str, np.ndarray] | str]:
    """Yield the digest and the small image of each row, or why it cannot be read. Each image is
    read once."""
    places = {(row.path, row.offset): row for row in rows}
    with ThreadPoolExecutor(workers) as pool:
        found = {}
        for place, one in zip(places, pool.map(_look, places.values())):
            found[place] = one
            if progress is not None:
                progress(len(found), len(places))
    return [found[row.path, row.offset] for row in rows]


def _look(row: Row) -> tuple[str, np.ndarray] | str:
    try:
        content = content_of(row)
        return hashlib.sha256(content).hexdigest(), duplicates.small(decode(row, content, LOOK))
    except UsageError as error:
        return str(error)


def content_of(row: Row) -> bytes:
    """Return the bytes of an image. Raise UsageError if they are missing."""
    if row.file.lower().startswith(URLS):
        raise UsageError(f"{shorten(row.file, 200)} is a URL: download it first.")
    if not row.file:
        raise UsageError(f"{row.path} names no image.")
    try:
        if not stat.S_ISREG(os.stat(row.file).st_mode):
            raise UsageError(f"{row.file} is not a file.")
        with open(row.file, "rb") as stream:
            stream.seek(max(0, row.offset))
            content = stream.read(row.size)
    except FileNotFoundError:
        raise UsageError(f"There is no image {row.path}.") from None
    except (OSError, ValueError) as error:
        words = str(getattr(error, "strerror", None) or error)
        raise UsageError(f"The image {row.path} cannot be read: {words}.") from None
    if not content:
        raise UsageError(f"{row.path} is empty.")
    return content


class _Bytes(io.BytesIO):
    """The bytes of an image, with its name for errors."""

    name: str


def decode(row: Row, content: bytes, side: int | None) -> Image.Image:
    """Return the RGB image of these bytes. Raise UsageError if they are not an image."""
    stream = _Bytes(content)
    stream.name = row.path
    return images.load(stream, side=side)


def cut(texts: list[str], tokenizer: Callable[..., torch.Tensor]) -> list[str]:
    """Return the texts that a tokenizer cuts: in a window that is one token longer, they have more
    than padding."""
    found = []
    for start in range(0, len(texts), TOGETHER):
        some = texts[start : start + TOGETHER]
        tokens_BL = tokenizer(some)
        length = tokens_BL.shape[1]
        longer_BL = tokenizer(some, context_length=length + 1)[:, :length]
        found += [some[i] for i in (longer_BL != tokens_BL).any(dim=1).nonzero().flatten().tolist()]
    return found
