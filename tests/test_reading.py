"""Files as people have them: odd heads, long texts, large sizes, other formats, deep folders."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_clip import landscape
from typer.testing import CliRunner

from clipguide import images, reading
from clipguide.cli.app import app
from clipguide.engine import Engine, Named, find
from clipguide.engine.resources import Budget, memory, processors
from clipguide.errors import ClipguideWarning, UsageError

SCENE = landscape(24, 16)


def pixels(picture):
    return np.asarray(picture)


# EXIF


def jpeg(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F], exif[0x0110] = "Maker", "Model"
    inner = exif.get_ifd(0x8769)
    inner[0x829A], inner[0x9003], inner[0x9286] = (1, 60), "2024:05:06 07:08:09", b"ASCII\0\0\0hi"
    stream = io.BytesIO()
    SCENE.save(stream, "jpeg", exif=exif, quality=90)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_would(orientation):
    from PIL import ImageOps

    content = jpeg(orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert (pixels(images.load(io.BytesIO(content))) == pixels(expected)).all()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_photo_is_refused_for_its_exif():
    """Every byte of the EXIF may be wrong: the pixels are there, turned or as they are."""
    content, draw = jpeg(6), random.Random(0)
    start = content.index(b"Exif\0\0") + 6
    end = content.index(b"\xff\xdb", start)
    plain = pixels(Image.open(io.BytesIO(content)).convert("RGB"))
    turned, straight = 0, 0
    for _ in range(688):
        fuzzed = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            fuzzed[draw.randrange(start, end)] = draw.randrange(256)
        seen = pixels(images.load(io.BytesIO(bytes(fuzzed))))
        if seen.shape == plain.shape:
            straight += 1
        else:
            assert (seen == np.rot90(plain, -1)).all()
            turned += 1
    assert turned > 300 and straight > 10, (turned, straight)


# PNG


def png(*chunks, after=()):
    """A PNG with chunks before its pixels, and after."""
    stream = io.BytesIO()
    SCENE.save(stream, "png")
    content = stream.getvalue()
    place, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4

    def packed(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body)
        )

    before, behind = (b"".join(packed(*c) for c in found) for found in (chunks, after))
    return content[:place] + before + content[place:end] + behind + content[end:]


LONG = zlib.compress(b"a" * (3 << 20))
WORDY = {
    "zTXt": (b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": (b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "iCCP": (b"iCCP", b"profile\0\0" + LONG),
    "tEXt": (b"tEXt", b"workflow\0" + b"a" * (3 << 20)),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", WORDY)
def test_a_png_with_long_texts(kind, after):
    content = png(after=[WORDY[kind]]) if after else png(WORDY[kind])
    assert (pixels(images.load(io.BytesIO(content))) == pixels(SCENE)).all()


def test_texts_beyond_pillows_memory():
    """The sum of many is limited as well."""
    part = (b"zTXt", b"workflow\0\0" + zlib.compress(b"a" * ((1 << 20) - 9)))
    content = png(*[part] * 70)
    assert (pixels(images.load(io.BytesIO(content))) == pixels(SCENE)).all()


# sizes


def test_more_pixels_than_are_read(tmp_path):
    SCENE.save(tmp_path / "a.png")
    with pytest.raises(UsageError) as caught:
        images.load(tmp_path / "a.png", megapixels=1e-4)
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'} has 24 x 16 pixels, 0.000384 megapixels, and more than 0.0001 are "
        "not read: allow them by --megapixels 1 (megapixels=)."
    )


def test_a_limit_of_ones_own_is_above_pillows(tmp_path):
    content = bytearray(png())
    place = content.index(b"IHDR") + 4
    content[place : place + 8] = struct.pack(">II", 20_000, 20_000)
    crc = zlib.crc32(bytes(content[place - 4 : place + 13]))
    content[place + 13 : place + 17] = struct.pack(">I", crc)
    with pytest.raises(UsageError, match="has 20000 x 20000 pixels, 400 megapixels, .*179 are not"):
        images.load(io.BytesIO(bytes(content)))
    limit = Image.MAX_IMAGE_PIXELS
    image = reading.open_image(io.BytesIO(bytes(content)), megapixels=400)
    assert image.size == (20_000, 20_000) and Image.MAX_IMAGE_PIXELS == limit


# other formats


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, .* pip install pillow-heif"),
        (b"\xff\x0a" + b"\0" * 40, "is JPEG XL, .* djxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40, "is JPEG XL, .* djxl"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', "is SVG, .* rsvg-convert"),
        (b"<SVG width='3'/>", "is SVG, .* rsvg-convert"),
        (b"", "is empty"),
        (b"no", "is not an image in a format that Pillow reads"),
        (b"nothing at all", "is not an image in a format that Pillow reads"),
    ],
)
def test_formats_that_pillow_does_not_read(tmp_path, head, said):
    (tmp_path / "a.jpg").write_bytes(head)
    if "HEIC" in said and ".heic" in Image.registered_extensions():
        pytest.skip("pillow-heif reads it")
    with pytest.raises(UsageError, match=said):
        images.load(tmp_path / "a.jpg")


def test_heic_where_it_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    SCENE.resize((96, 64)).save(tmp_path / "a.heic", quality=95)
    seen = pixels(images.load(tmp_path / "a.heic")).astype(int)
    assert np.abs(seen - pixels(SCENE.resize((96, 64)))).mean() < 6
    assert list(find([tmp_path])) == [str(tmp_path / "a.heic")]


def test_files_of_such_kinds_are_named_when_they_are_passed_over(clip_folder, tmp_path):
    SCENE.save(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text("<svg/>")
    (tmp_path / "c.jxl").write_bytes(b"")
    (tmp_path / "LICENCE.md").write_text("free")  # of which nothing is said
    command = ["embed", str(tmp_path), "--clip", str(clip_folder), "-o", str(tmp_path / "x.npz")]
    done = CliRunner().invoke(app, command)
    assert "1 file is skipped, which may be SVG: draw it first" in done.stderr
    assert "1 file is skipped, which may be JPEG XL: convert it first" in done.stderr
    assert "LICENCE" not in done.stderr and "file" not in done.stderr.replace("1 file", "")


# colours


def swapped_profile():
    """sRGB with red and blue swapped: what is converted by it has them swapped."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", content, 128)[0]
    for i in range(count):
        tag = content[132 + 12 * i : 136 + 12 * i]
        if tag in (b"rXYZ", b"bXYZ"):
            content[132 + 12 * i : 136 + 12 * i] = b"bXYZ" if tag == b"rXYZ" else b"rXYZ"
    return bytes(content).replace(b"sRGB", b"swap").replace(
        "sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_are_converted_where_that_is_asked_for(clip, tmp_path, mode):
    picture = Image.new("RGB", (8, 8), (204, 51, 102)).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert pixels(images.load(tmp_path / "a.png"))[0, 0].tolist() == [204, 51, 102]
    found = pixels(images.load(tmp_path / "a.png", icc=True))[0, 0].astype(int)
    assert np.abs(found - [102, 51, 204]).max() <= 3
    plain, converted = Engine(clip, verify=True), Engine(clip, icc=True, verify=True)
    (one,), (other,) = plain.embed([tmp_path / "a.png"]), converted.embed([tmp_path / "a.png"])
    assert not one.unit_D.equal(other.unit_D) and plain.key != converted.key
    assert list(plain.profiles) == [str(tmp_path / "a.png")] and not converted.profiles


def test_a_profile_that_is_none_costs_nothing(tmp_path):
    SCENE.save(tmp_path / "a.png", icc_profile=b"no profile" * 20)
    assert (pixels(images.load(tmp_path / "a.png", icc=True)) == pixels(SCENE)).all()


# memory and processors


def test_threads_share_a_budget():
    budget, most, now = Budget(100), [0], [0]
    lock, barrier = threading.Lock(), threading.Barrier(6)

    def work(count):
        barrier.wait()
        with budget.lease() as lease:
            lease.take(count)
            with lock:
                now[0] += min(count, 100)
                most[0] = max(most[0], now[0])
            with lock:
                now[0] -= min(count, 100)

    threads = [threading.Thread(target=work, args=(n,)) for n in (60, 60, 30, 200, 100, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert most[0] <= 100
    with budget.lease() as lease:
        lease.take(100)


PEAK = """
import resource, sys
from clipguide import images
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
image = images.load(sys.argv[1])
print((peak() - before) / image.width / image.height)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_a_large_transparent_palette_takes_what_it_is_said_to_take(tmp_path):
    """1.2 GB of 81 megapixels were 15 bytes a pixel."""
    picture = Image.new("P", (5000, 5000))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=0)
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "a.png"],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 10
    assert images.cost(picture) == 12 * 25e6


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_processors_and_memory_of_a_control_group(tmp_path):
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert processors(tmp_path) == bound and memory(tmp_path) is None
    two = machine(
        tmp_path / "two",
        {
            "proc/self/cgroup": "0::/pods/mine\n",
            "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:   8000 kB\n",
            "sys/fs/cgroup/pods/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/pods/mine/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pods/mine/memory.max": "3000000\n",
            "sys/fs/cgroup/pods/mine/memory.current": "1000000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert processors(two) == 1 and memory(two) == 2_000_000
    one = machine(
        tmp_path / "one",
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/a\n5:memory:/docker/a\n",
            "proc/meminfo": "MemAvailable: 1000 kB\n",
            "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": "5\n",
        },
    )
    assert processors(one) == bound and memory(one) == 1_024_000


# folders and names


def test_folders_as_deep_as_they_come(tmp_path):
    here, depth = os.getcwd(), 1200
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        SCENE.save("a.png")
        (found,) = find([tmp_path])
    finally:  # pytest's own clearing up does not come so deep
        os.remove("a.png")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        os.chdir(here)
    assert found.count("/d") == depth and found.endswith("/a.png")


def test_a_folder_that_may_not_be_read_stops_nothing(tmp_path, monkeypatch):
    """Whoever runs the tests may read all, so that the system's refusal is made here."""
    for name in ("a.png", "b/c.png", "lost+found/x.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        SCENE.save(tmp_path / name)
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    unread, expected = [], ["a.png", "b/c.png", "z.png"]
    assert [os.path.relpath(p, tmp_path) for p in find([tmp_path], unread=unread)] == expected
    assert unread == [str(tmp_path / "lost+found")]
    with pytest.warns(ClipguideWarning, match="lost.found cannot be read .Permission denied., and"):
        assert len(list(find([tmp_path]))) == 3
    with pytest.raises(UsageError, match="The folder .*lost.found cannot be read: Permission"):
        list(find([tmp_path / "lost+found"]))


def test_names_on_stdin_are_no_patterns(clip_folder, tmp_path):
    SCENE.save(tmp_path / "a.png")
    assert list(find([Named(tmp_path / "gone [*].png")])) == [str(tmp_path / "gone [*].png")]
    names = f"{tmp_path}/gone [1].png\n{tmp_path}/a.png\n{tmp_path}/*.png\n"
    command = ["score", "-", "--text", "a fox", "--clip", str(clip_folder)]
    done = CliRunner().invoke(app, command, input=names)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(".png") == 1
    assert f"There is no file {tmp_path}/gone [1].png." in done.stderr
    assert f"There is no file {tmp_path}/*.png." in done.stderr
    assert "2 of 3 images could not be read." in done.stderr
