"""Open image files by their content, within a limit of pixels, whatever their headers say."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from .errors import UsageError

MEGAPIXELS = 179.0  # largest number of pixels of an image, by default
PNG = b"\x89PNG\r\n\x1a\n"
WORDY = (b"zTXt", b"iTXt", b"tEXt", b"iCCP")  # Pillow reads at most 1 MiB of each, unpacked
TURNS = {  # EXIF's orientations (2.32, table 4): how the pixels are to be turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
UNREAD = {  # formats that Pillow cannot read alone, and the package that can
    "HEIC": "pip install pillow-heif reads it",
    "JPEG XL": "convert it first, as by djxl a.jxl a.png",
    "SVG": "draw it first, as by rsvg-convert a.svg -o a.png",
}
ENDINGS = {".heic": "HEIC", ".heif": "HEIC", ".jxl": "JPEG XL", ".svg": "SVG"}


@cache
def formats() -> None:
    """Register all formats that Pillow reads, and HEIC if pillow-heif is installed."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def open_image(stream: BinaryIO, *, megapixels: float | None = None) -> Image.Image:
    """Return the image of a stream. Only the header is read.

    It is `Image.open` with its own limit of pixels, which is not a global of Pillow.

    Raises:
        UsageError: it has more than `megapixels` (10^6 pixels; 179 by default), or Pillow does not
            read the format. The message begins with a verb.
    """
    formats()
    prefix = stream.read(16)
    for name in Image.ID:
        factory, accepts = Image.OPEN[name]
        try:
            accepted = not accepts or accepts(prefix)
            if not accepted or isinstance(accepted, str):
                continue
            stream.seek(0)
            image = factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
        _check_size(image, MEGAPIXELS if megapixels is None else megapixels)
        return image
    stream.seek(0)
    kind = _kind(stream.read(1024))
    if kind:
        raise UsageError(f"is {kind}, which Pillow does not read: {UNREAD[kind]}")
    raise UnidentifiedImageError


def check_header(file: Path) -> None:
    """Raise UsageError if a file is not an image, by its header. A damaged image may pass."""
    with in_sentences(file):
        check_file(file)
        with open(file, "rb") as stream:
            try:
                open_image(stream)
            except ValueError as error:
                if not too_wordy(error):
                    raise


def check_file(file: Path) -> None:
    """Raise UsageError if there is a folder or a pipe in the place of a file."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise UsageError("is not a file")


@contextlib.contextmanager
def in_sentences(name: object) -> Iterator[None]:
    """Turn the errors of reading an image into a UsageError with one sentence about its name."""
    try:
        yield
    except UsageError as error:
        words = str(error)
        told = f"{name} {words}." if words.startswith(("is ", "has ")) else words
        raise UsageError(told) from None
    except FileNotFoundError:
        raise UsageError(f"There is no image {name}.") from None
    except UnidentifiedImageError:
        empty = isinstance(name, Path) and not name.stat().st_size
        what = "is empty" if empty else "is not an image in a format that Pillow reads"
        raise UsageError(f"{name} {what}.") from None
    except Exception as error:  # Pillow's plugins raise various errors for a damaged file
        words = str(getattr(error, "strerror", None) or error or type(error).__name__)
        raise UsageError(f"The image {name} cannot be read: {words.rstrip('.')}.") from None


def turned(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF says; unchanged if that cannot be read."""
    image.load()  # a PNG's EXIF may follow its pixels
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # Pillow raises various errors for damaged EXIF
        turn = None
    return image if turn is None else image.transpose(turn)


def without_texts(content: bytes) -> io.BytesIO:
    """Return a PNG without its chunks of texts and profiles. Pillow refuses long ones."""
    kept = [PNG]
    for kind, body in chunks(content):
        if kind not in WORDY:
            crc = zlib.crc32(kind + body)
            kept.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc))
    return io.BytesIO(b"".join(kept))


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, body) of each complete chunk of a PNG."""
    place = len(PNG)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        if place + 12 + length > len(content):
            return
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += 12 + length


def too_wordy(error: Exception) -> bool:
    """Return whether Pillow refused a PNG because of the length of its texts."""
    return "MAX_TEXT" in str(error) or "memory used in text chunks" in str(error)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert the colours of an ICC profile to sRGB, perceptually, and keep transparency. They do
    not change if the profile cannot be read, or belongs to another kind of image."""
    from PIL import ImageCms

    if image.mode == "RGBA":
        converted = to_srgb(image.convert("RGB"), profile)
        converted.putalpha(image.getchannel("A"))
        return converted
    image = image.convert("RGB") if image.mode == "P" else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def foreign_profile(image: Image.Image) -> str | None:
    """Return the name of an image's ICC profile, if it is readable and not sRGB."""
    from PIL import ImageCms

    if not image.info.get("icc_profile"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        name = " ".join(ImageCms.getProfileDescription(source).split())
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if "srgb" in name.lower() else name


def _check_size(image: Image.Image, most: float) -> None:
    size = image.width * image.height / 1e6
    if size > most:
        image.close()
        raise UsageError(
            f"has {image.width} x {image.height} pixels, {size:.4g} megapixels, and more than "
            f"{most:g} are not read: allow them by --megapixels {-(-size // 1):g} (megapixels=)"
        )


def _kind(head: bytes) -> str | None:
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        return "HEIC"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    return "SVG" if b"<svg" in head.lower() else None
