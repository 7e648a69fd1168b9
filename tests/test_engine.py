"""Files to vectors: the engine against the model itself, and what it does when things go wrong."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, write_clip
from PIL import Image
from test_clip import landscape
from torch.testing import assert_close

from benchmarks.odd_files import make
from clipguide.clip import load_clip
from clipguide.clip.resize import tame
from clipguide.engine import Cache, Engine, encoder, engine, find, table
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of several sizes and formats, made a while ago."""
    home = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        path = home / f"{i:02}.{('png', 'jpg')[i % 2]}"
        landscape(40 + 13 * i, 90 - 5 * i, seed=i).save(path)
        os.utime(path, (1_700_000_000,) * 2)
    return home


@pytest.fixture
def never(monkeypatch):
    """Call it, and from then on the model must not run."""

    def forbid(clip):
        def run(prepared):
            raise AssertionError("the model ran")

        monkeypatch.setattr(clip, "encode_prepared", run)

    return forbid


def vectors(rows):
    return torch.stack([row.unit_D for row in rows])


def test_vectors_are_open_clips(clip, clip_folder, folder):
    """Those of open_clip's own model and transform, over a file at a time."""
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    paths = sorted(folder.iterdir())
    rows = list(Engine(clip, batch=3, workers=2).embed(paths))
    assert [row.path for row in rows] == [str(path) for path in paths]
    with torch.no_grad():
        expected = [
            model.eval().encode_image(transform(Image.open(path))[None], normalize=True)[0]
            for path in paths
        ]
    assert_close(vectors(rows), torch.stack(expected), atol=1e-5, rtol=0)


def test_bad_files_do_not_stop_it(clip, folder, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    good = sorted(folder.iterdir())[:3]
    paths = [good[0], tmp_path / "text.png", good[1], tmp_path, "nowhere.png", good[2]]
    paths += [tmp_path / "empty.png", "https://example.org/a.png", "zero\0byte.png"]
    rows = list(Engine(clip, batch=2).embed(paths))
    assert [row.path for row in rows] == [str(path) for path in paths]
    told = [row.error for row in rows if row.error]
    assert [row.unit_D is None for row in rows] == [bool(row.error) for row in rows]
    ends = [
        "is not an image in a format that Pillow reads.",
        "is a folder.",
        "There is no file nowhere.png.",
        "is empty.",
        "is a URL, which is read only where that is allowed.",
        "cannot be read: embedded null byte.",
    ]
    assert all(one.endswith(end) for one, end in zip(told, ends, strict=True))


def test_odd_files(clip, tmp_path):
    """The benchmark's kinds, a third of their number: each file once, read or told of."""
    readable = make(tmp_path / "odd", count=140)
    rows = list(Engine(clip).embed(find([tmp_path / "odd"])))
    assert len(rows) == len(readable)
    assert {row.path: row.error is None for row in rows} == readable
    assert all(row.path in row.error for row in rows if row.error)


def test_it_streams(clip, folder):
    """No more files are taken than are worked on, also when one waits before many."""
    taken = []

    def paths():
        for path in sorted(folder.iterdir()) * 40:
            taken.append(path)
            yield path

    rows = Engine(clip, batch=2).embed(paths())
    for count in range(1, 50):
        next(rows)
        assert len(taken) <= count + engine.AHEAD * 2 + 2
    rows.close()


def test_one_new_file_does_not_hold_up_the_cached(clip, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WAITING", 5)
    cache = Cache(tmp_path / "cache.sqlite")
    paths = sorted(folder.iterdir())
    list(Engine(clip, cache=cache).embed(paths[1:]))
    taken = []
    rows = Engine(clip, cache=cache).embed(taken.append(path) or path for path in paths)
    assert next(rows).path == str(paths[0])
    assert len(taken) == 5


def test_alpha(clip, clip_folder, tmp_path):
    """On white by default; dropped as open_clip drops it, after the resize."""
    import open_clip

    values = np.random.default_rng(0).integers(0, 255, (70, 50, 4), np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "clear.png")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    with torch.no_grad():
        image = transform(Image.open(tmp_path / "clear.png"))[None]
        dropped = model.eval().encode_image(image, normalize=True)[0]
    picture = Image.open(tmp_path / "clear.png")
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    (on_white,) = Engine(clip).embed([tmp_path / "clear.png"])
    (without,) = Engine(clip, alpha="drop").embed([tmp_path / "clear.png"])
    assert_close(without.unit_D, dropped, atol=1e-5, rtol=0)
    assert_close(on_white.unit_D, clip.encode_pictures([white])[0])
    assert (without.unit_D - on_white.unit_D).abs().max() > 1e-3


def test_frames(clip, tmp_path):
    """Of ten frames, three: the first, the fourth and the seventh."""
    frames = [landscape(40, 40, seed=i) for i in range(10)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    (first,) = Engine(clip).embed([tmp_path / "a.png"])
    assert_close(first.unit_D, clip.encode_pictures(frames[:1])[0])
    (three,) = Engine(clip, frames=3, batch=2).embed([tmp_path / "a.png"])
    mean_D = clip.encode_pictures([frames[0], frames[3], frames[6]]).mean(0)
    assert_close(three.unit_D, mean_D / mean_D.norm())
    frames[5].save(tmp_path / "still.png")
    (still,) = Engine(clip, frames=3).embed([tmp_path / "still.png"])
    assert_close(still.unit_D, clip.encode_pictures([frames[5]])[0])


def test_fast_is_near(clip, tmp_path):
    """A JPEG ten times too large is decoded at an eighth, and seen nearly the same."""
    landscape(IMAGE_SIZE * 10, IMAGE_SIZE * 12).save(tmp_path / "large.jpg", quality=95)
    (exact,) = Engine(clip).embed([tmp_path / "large.jpg"])
    (fast,) = Engine(clip, fast=True).embed([tmp_path / "large.jpg"])
    assert exact.unit_D @ fast.unit_D > 0.99
    assert not torch.equal(exact.unit_D, fast.unit_D)


def test_bf16_where_it_holds(clip, folder, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache.sqlite")
    paths = sorted(folder.iterdir())
    exact = vectors(Engine(clip).embed(paths))
    monkeypatch.setattr(encoder, "HOLDS", 0.5)
    half = Engine(clip, bf16=True, cache=cache)
    rows = vectors(half.embed(paths))
    assert half.key != Engine(clip).key
    assert 0 < (rows - exact).abs().max() < 0.1
    monkeypatch.setattr(encoder, "HOLDS", 1e-9)
    full = Engine(clip, bf16=True)
    with pytest.warns(
        ClipguideWarning, match=r"bfloat16 would change cosines .* goes on in float32"
    ):
        assert torch.equal(vectors(full.embed(paths)), exact)
    assert full.key == Engine(clip).key


def test_bf16_from_the_cache(clip, folder, tmp_path, monkeypatch, never):
    """What bfloat16 made is found again before the model runs."""
    monkeypatch.setattr(encoder, "HOLDS", 0.5)
    cache = Cache(tmp_path / "cache.sqlite")
    first = vectors(Engine(clip, bf16=True, cache=cache).embed(find([folder])))
    never(clip)
    assert torch.equal(vectors(Engine(clip, bf16=True, cache=cache).embed(find([folder]))), first)


@pytest.mark.filterwarnings("error")
def test_out_of_memory_halves_the_batch(clip, folder, monkeypatch):
    paths = sorted(folder.iterdir())
    expected = vectors(Engine(clip).embed(paths))
    encode = clip.encode_prepared

    def small(prepared, most=3):
        if len(prepared) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return encode(prepared)

    monkeypatch.setattr(clip, "encode_prepared", small)
    with pytest.warns(ClipguideWarning, match="8 images at a time do not fit") as told:
        frugal = Engine(clip, batch=8)
        rows = vectors(frugal.embed(paths))
    assert len(told) == 1 and frugal.batch == 2
    assert_close(rows, expected)
    monkeypatch.setattr(clip, "encode_prepared", partial(small, most=0))
    with (
        pytest.warns(ClipguideWarning, match="do not fit"),
        pytest.raises(ClipguideError, match="not enough memory for one image"),
    ):
        list(Engine(clip, batch=8).embed(paths))


def test_other_errors_of_the_model_are_not_hidden(clip, folder, monkeypatch):
    def broken(prepared):
        raise RuntimeError("some other thing")

    monkeypatch.setattr(clip, "encode_prepared", broken)
    with pytest.raises(RuntimeError, match="some other thing"):
        list(Engine(clip).embed(find([folder])))


@pytest.mark.parametrize("setting", [{"batch": 0}, {"workers": -1}, {"frames": 0}])
def test_settings_that_make_no_sense(clip, setting):
    with pytest.raises(UsageError, match=f"{next(iter(setting))} must be at least 1"):
        Engine(clip, **setting)
    with pytest.raises(UsageError, match="alpha is white or drop, not 'black'"):
        Engine(clip, alpha="black")


def test_urls(clip, folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        rows = list(Engine(clip, urls=True).embed([f"{url}/00.png", f"{url}/none.png"]))
    finally:
        server.shutdown()
        server.server_close()
    (local,) = Engine(clip).embed([folder / "00.png"])
    assert torch.equal(rows[0].unit_D, local.unit_D)
    assert "cannot be downloaded: HTTP Error 404" in rows[1].error
    (refused,) = Engine(clip, urls=True).embed([f"{url}/00.png"])  # the server is gone
    assert refused.error.endswith("cannot be downloaded: Connection refused.")


def test_two_processes_share(clip, clip_folder, folder, tmp_path):
    """By gloo: one file, with all rows in order, those of one process."""
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "clipguide", "embed", str(folder), "nowhere.png"]
    command += ["--clip", str(clip_folder), "--no-cache", "--batch", "2", "-o", "a.npz"]
    run = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["a.npz  10 vectors of 24"]
    assert "There is no file nowhere.png." in run.stderr
    paths = list(find([folder]))
    rows = list(table.read(tmp_path / "a.npz", key=Engine(clip).key))
    assert [row.path for row in rows] == paths
    assert_close(vectors(rows), vectors(Engine(clip).embed(paths)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_strips_are_seen_as_they_are(interpolation):
    """The middle of a strip that is resized alone is that of the strip resized whole."""
    from open_clip import image_transform

    zero_one = {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": interpolation}
    transform = image_transform(IMAGE_SIZE, is_train=False, resize_mode="shortest", **zero_one)
    config = {"resize_mode": "shortest", "interpolation": interpolation}
    for width, height in [(20, 500), (900, 41), (3, 100), (64, 1100), (1, 40)]:
        picture = landscape(width, height)
        seen = tame(picture, config, IMAGE_SIZE)
        assert seen.size == (IMAGE_SIZE, IMAGE_SIZE)
        assert_close(transform(seen), transform(picture), atol=2.1 / 255, rtol=0)
    assert tame(landscape(60, 40), config, IMAGE_SIZE).size == (60, 40)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_strips_cost_no_more_than_pictures(tmp_path, mode):
    """1 x 10,000 pixels would be 224 x 2,240,000 of a ViT; "longest" would have no width."""
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    folder = write_clip(tmp_path / "clip", seed=0, preprocess={**preprocess, "resize_mode": mode})
    clip = load_clip(str(folder))
    for size in [(1, 10_000), (10_000, 1)]:
        Image.new("RGB", size, "red").save(tmp_path / "strip.png")
        (row,) = Engine(clip).embed([tmp_path / "strip.png"])
        assert row.error is None
        shape = clip.prepare(Image.new("RGB", size)).shape
        assert shape == (IMAGE_SIZE, IMAGE_SIZE, 3)


def test_a_stream_is_a_picture_too():
    from clipguide.images import load

    content = io.BytesIO()
    landscape(20, 10).save(content, "png")
    content.seek(0)
    assert load(content).size == (20, 10)
    with pytest.raises(UsageError, match="the image is not an image"):
        load(io.BytesIO(b"nonsense"))
