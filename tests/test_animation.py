"""Animations: what is written is what is read back, whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np
import pytest
from PIL import Image

from clipguide import animation
from clipguide.errors import ClipguideError, UsageError


def smooth_frames(width: int = 48, height: int = 32, number: int = 4) -> list[Image.Image]:
    """A grey ramp that grows brighter."""
    ramp_HW = np.linspace(0, 255, width) * np.ones((height, 1))
    return [
        Image.fromarray((ramp_HW * (k + 1) / number).astype(np.uint8)).convert("RGB")
        for k in range(number)
    ]


FRAMES = smooth_frames()


def error(one, other) -> float:
    return abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean()


@pytest.mark.parametrize(("name", "most"), [("a.gif", 1), ("a.webp", 5), ("a.GIF", 1)])
def test_round_trip(tmp_path, name, most):
    animation.write(FRAMES, tmp_path / "new" / name)
    durations = []
    with Image.open(tmp_path / "new" / name) as moving:
        assert moving.n_frames == len(FRAMES) and moving.info["loop"] == 0
        for k, frame in enumerate(FRAMES):
            moving.seek(k)
            assert error(moving.convert("RGB"), frame) <= most
            durations.append(moving.info["duration"])
    assert durations == [100, 100, 100, 2000]
    assert os.listdir(tmp_path / "new") == [name]


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_a_single_frame(tmp_path, name):
    animation.write(FRAMES[-1:], tmp_path / name)
    with Image.open(tmp_path / name) as still:
        assert error(still.convert("RGB"), FRAMES[-1]) <= 5


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_image_that_grows(tmp_path, name):
    """Every frame has the size of the last one, and shows the whole of its image."""
    animation.write([smooth_frames(24, 16)[1], FRAMES[3]], tmp_path / name)
    with Image.open(tmp_path / name) as moving:
        assert moving.size == (48, 32) and moving.n_frames == 2
        for k, frame in enumerate((FRAMES[1], FRAMES[3])):
            moving.seek(k)
            assert error(moving.convert("RGB"), frame) <= 5


@pytest.mark.parametrize("encoder", ["av", "imageio_ffmpeg"])
def test_mp4(tmp_path, monkeypatch, encoder):
    """Odd sides are filled up on white; the last frame stays for two seconds."""
    av = pytest.importorskip("av", reason="pip install av")
    pytest.importorskip(encoder, reason="pip install imageio-ffmpeg")
    if encoder == "imageio_ffmpeg":
        monkeypatch.setattr(animation, "_is_installed", lambda module: module == encoder)
    frames = smooth_frames(47, 33)
    animation.write(frames, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as video:
        seen = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(seen) == len(frames) - 1 + 20 and seen[0].shape == (34, 48, 3)
    for k, frame in enumerate(frames):
        assert error(seen[k][:33, :47], frame) < 4
    assert error(seen[-1], seen[len(frames) - 1]) < 2 and seen[-1][:, 47].min() > 200


def test_mp4_without_an_encoder(tmp_path, monkeypatch):
    for module in ("av", "imageio_ffmpeg"):
        monkeypatch.setitem(sys.modules, module, None)  # as Python has what it failed to import
        assert importlib.util.find_spec(module) is None
    with pytest.raises(UsageError, match="pip install av"):
        animation.write(FRAMES, tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.avi", "a.png", "a", ".gif"])
def test_other_names(tmp_path, name):
    with pytest.raises(UsageError, match="end .* in .gif, .webp or .mp4"):
        animation.check(tmp_path / name)


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "a.gif"
    path.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        animation.write(FRAMES, path)
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["a.gif"]
    animation.write(FRAMES, path, overwrite=True)
    with Image.open(path) as moving:
        assert moving.n_frames == len(FRAMES)


def test_half_an_animation_is_none(tmp_path):
    """A frame that cannot be written leaves no file behind."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ClipguideError, match="cannot be written"):
        animation.write(FRAMES, tmp_path / "file" / "a.gif")
    with pytest.raises(AttributeError):
        animation.write([FRAMES[0], None], tmp_path / "a.gif")
    assert os.listdir(tmp_path) == ["file"]
