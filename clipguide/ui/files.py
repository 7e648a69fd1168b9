"""The files that the page reads: uploads, and the images of the index if they have not changed
since."""

from __future__ import annotations

import os
import stat
import time
import warnings
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from .. import images
from ..errors import UsageError

if TYPE_CHECKING:
    from ..retrieval import Hit

LARGEST = 20 << 20  # largest upload in bytes
PIXELS = 50_000_000  # of an uploaded or shown image
OLDEST = 86400  # seconds after which a file of the page is deleted
SHOWN = 1600  # longer side in pixels of an image in the full view
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
EPOCH = datetime(1970, 1, 1)


def inside(path: str, folder: str | os.PathLike) -> bool:
    """Return whether a file lies in a folder after all links and dots are followed."""
    try:
        real, home = os.path.realpath(path), os.path.realpath(folder)
        return os.path.isabs(path) and os.path.commonpath([real, home]) == home != real
    except ValueError:  # a null byte, another drive
        return False


def held(folder: str | os.PathLike) -> int:
    """Return the bytes of all files in a folder. Delete files older than a day."""
    total, now = 0, time.time()
    for home, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(home, name)
            try:
                about = os.lstat(path)
                if now - about.st_mtime > OLDEST:
                    os.unlink(path)
                else:
                    total += about.st_size
            except OSError:  # Gradio deleted it first
                pass
    return total


def uploaded(path: str, *, alpha: str = "white", icc: bool = False) -> Image.Image:
    """Return an uploaded image, as `images.load`. Raise UsageError if it is too large, or not an
    image of FORMATS. The message names the file without its folder."""
    name = os.path.basename(path)
    if os.path.getsize(path) > LARGEST:
        raise UsageError(f"{name} is larger than {LARGEST >> 20} MiB: make it smaller first.")
    return _loaded(path, name, alpha, icc)


def indexed(hit: Hit) -> Image.Image | None:
    """Return the image of a hit, at most SHOWN pixels per side. Return None unless it is the
    indexed file: not a link, with the same size and time."""
    try:
        if os.path.islink(hit.path):
            return None
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(hit.path, flags | getattr(os, "O_BINARY", 0)), "rb") as stream:
            about = os.fstat(stream.fileno())
            changed = (hit.facts["mtime"] - EPOCH) // timedelta(microseconds=1)
            same = (about.st_size, about.st_mtime_ns // 1000) == (hit.facts["size"], changed)
            if not (same and stat.S_ISREG(about.st_mode)):
                return None
            picture = _loaded(stream, hit.path, "white")
    except (OSError, ValueError, UsageError):
        return None
    picture.thumbnail((SHOWN, SHOWN))
    return picture


def _loaded(source: object, name: str, alpha: str, icc: bool = False) -> Image.Image:
    Image.init()
    formats = [one for one in FORMATS if one in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=formats) as image:
                if image.width * image.height > PIXELS:
                    raise UsageError(
                        f"{name} has {image.width} x {image.height} pixels, and the page takes "
                        f"{PIXELS // 10**6} million: make it smaller first."
                    )
                return images.load(image, alpha=alpha, icc=icc)
    except UsageError:
        raise
    except Image.DecompressionBombError:
        raise UsageError(f"{name} has too many pixels: make it smaller first.") from None
    except UnidentifiedImageError:
        raise UsageError(
            f"{name} is not an image that the page reads: JPEG, PNG, WebP, GIF, AVIF, TIFF or BMP."
        ) from None
    except Exception as error:  # Pillow's plugins raise various errors for a damaged file
        words = str(error) if isinstance(error, OSError) else ""
        words = words or "it is damaged"
        raise UsageError(f"{name} cannot be read: {words.rstrip('.')}.") from None
