"""Make damaged and unusual image files, each with the expected result, to test readers of images.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("png", "jpg", "gif", "webp", "bmp", "tif", "ppm", "ico")
NAMES = ("new\nline", "emoji 🦊", "quo'te\"s", "-dash", "tab\there", "a" * 200, "ünïcode", "a  b")


def make(folder: Path, *, count: int = 300) -> dict[str, bool]:
    """Make about `count` odd files in an empty folder. Return whether each can be read, by its
    path."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    readable: dict[str, bool] = {}

    def note(path: Path, works: bool) -> Path:
        readable[str(path)] = works
        return path

    for end in FORMATS:
        whole = folder / f"whole.{end}"
        picture.save(note(whole, True))
        content = whole.read_bytes()
        note(folder / f"empty.{end}", False).write_bytes(b"")
        note(folder / f"text.{end}", False).write_text("no picture\n" * 50)
        note(folder / f"zeros.{end}", False).write_bytes(bytes(4096))
        note(folder / f"head.{end}", False).write_bytes(content[:12])
        wrong = folder / f"really-a-png.{end}"
        picture.save(note(wrong, True), format="png")
        note(folder / f"folder.{end}", True).mkdir()  # is walked, and holds nothing
        del readable[str(folder / f"folder.{end}")]
        (folder / f"nowhere.{end}").symlink_to(folder / "is-not-there")
        note(folder / f"nowhere.{end}", False)
        loop = note(folder / f"loop.{end}", False)
        loop.symlink_to(loop)
        os.mkfifo(note(folder / f"pipe.{end}", False))
    for name in NAMES:
        picture.save(note(folder / f"{name}.png", True))
        note(folder / f"broken {name}.png", False).write_bytes(b"\x89PNG\r\n\x1a\n")
    _strange(folder, note)
    _bombs(folder, note)
    _cut(folder, picture, note, count - len(readable) - 1)
    secret = note(folder / "secret.png", os.geteuid() == 0)  # root may read anything
    picture.save(secret)
    secret.chmod(0)
    (folder / "deep").mkdir()
    (folder / "deep" / "back").symlink_to(folder)
    return readable


def _strange(folder: Path, note) -> None:
    """Make files with unusual sizes and modes that are valid."""
    random = np.random.default_rng(1)
    for width, height in ((1, 1), (1, 10_000), (10_000, 1), (2, 3), (3000, 2)):
        values = random.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(values).save(note(folder / f"{width}x{height}.png", True))
    grey = Image.fromarray(random.integers(0, 65535, (30, 20), np.uint16))
    grey.save(note(folder / "16-bit.png", True))
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(note(folder / "clear.png", True))
    Image.new("LA", (20, 20), (9, 0)).save(note(folder / "grey-alpha.png", True))
    Image.new("1", (20, 20)).save(note(folder / "one-bit.png", True))
    Image.new("P", (20, 20)).save(note(folder / "palette.png", True), transparency=0)
    Image.new("CMYK", (20, 20), (9, 99, 0, 0)).save(note(folder / "cmyk.jpg", True))
    Image.new("F", (20, 20), 0.5).save(note(folder / "float.tif", True))
    Image.new("LAB", (20, 20)).save(note(folder / "lab.tif", True))
    for end in ("gif", "webp", "png"):
        frames = [Image.new("RGB", (20, 20), (80 * i, 9, 9)) for i in range(3)]
        target = note(folder / f"moving.{end}", True)
        frames[0].save(target, save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(note(folder / "turned.jpg", True), exif=exif)
    exif[0x0112] = 99
    Image.new("RGB", (30, 20)).save(note(folder / "turned-oddly.jpg", True), exif=exif)


def _bombs(folder: Path, note) -> None:
    """Make small files that claim, or contain, gigabytes."""
    for side in (20_000, 100_000, 2**31 - 1):
        note(folder / f"bomb-{side}.png", False).write_bytes(_png(side, side, zlib.compress(b"")))
        bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, *[0] * 6)
        note(folder / f"bomb-{side}.bmp", False).write_bytes(bmp)
    rows = zlib.compress(bytes(15_000 * (15_000 + 1)), 9)  # is whole
    note(folder / "bomb-whole.png", False).write_bytes(_png(15_000, 15_000, rows))
    text = zlib.compress(bytes(200 << 20), 9)
    chunk = _chunk(b"zTXt", b"a\0\0" + text)
    small = _png(1, 1, zlib.compress(bytes(2)), before=chunk)
    note(folder / "bomb-text.png", True).write_bytes(small)


def _cut(folder: Path, picture: Image.Image, note, count: int) -> None:
    """Make images that are cut off, or have changed bytes in their headers, until there are enough.
    """
    ends = ("png", "jpg", "webp", "tif", "gif")
    large = picture.resize((300, 200))
    for i in range(max(0, count)):
        end = ends[i % len(ends)]
        whole = folder / f"cut-{i}.{end}"
        large.save(whole)
        content = whole.read_bytes()
        whole.write_bytes(content[: len(content) * (1 + i % 7) // 16])
        note(whole, False)


def _png(width: int, height: int, rows: bytes, before: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
