"""Download images from URLs."""

from __future__ import annotations

import io
import urllib.request

from ..errors import UsageError
from ..prompts import shorten

LARGEST = 64 << 20  # largest download in bytes


def download(url: str) -> io.BytesIO:
    """Return the bytes of a URL. Raise UsageError if there are none, or more than 64 MiB."""
    try:
        with urllib.request.urlopen(url, timeout=30) as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{shorten(url)} cannot be downloaded: {why(error)}.") from None
    if len(content) > LARGEST:
        raise UsageError(f"{shorten(url)} is larger than {LARGEST >> 20} MiB: download it first.")
    return io.BytesIO(content)


def why(error: BaseException) -> str:
    """Return the reason of an error, in one line. urllib wraps that of the operating system."""
    if isinstance(inner := getattr(error, "reason", None), BaseException):
        return why(inner)
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shorten(" ".join(words.split()), 200).rstrip(".")
