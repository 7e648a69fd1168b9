"""Pictures that are there more than once: found, shown, and never touched."""

from __future__ import annotations

import io
import os
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from test_clip import landscape

pytest.importorskip("lancedb")
from test_search import made, units

from clipguide.engine import Engine
from clipguide.errors import UsageError
from clipguide.retrieval import duplicates, page, update


def test_same_content(clip, tmp_path):
    home = tmp_path / "home"
    (home / "b").mkdir(parents=True)
    for i in range(4):
        landscape(30, 30, seed=i).save(home / f"{i}.png")
    shutil.copy(home / "0.png", home / "b" / "copy.png")
    os.utime(home / "0.png", (time.time() + 50,) * 2)  # the copy is older: it comes first
    before = sorted(home.rglob("*"))
    list(update(tmp_path / "db", [home], engine=Engine(clip)))
    (group,) = duplicates(tmp_path / "db", near=False)
    assert group.paths == [str(home / "b" / "copy.png"), str(home / "0.png")] and group.exact
    assert group.scores == pytest.approx([1, 1]) and len(set(group.sizes)) == 1
    assert sorted(home.rglob("*")) == before, "nothing is deleted"


def reference(unit_BD, threshold):
    """Leaders, the largest first, each with those that are like it and not taken."""
    alike_BB = unit_BD @ unit_BD.T >= threshold
    left, groups = list(range(len(unit_BD)))[::-1], set()  # the largest are the last
    while left:
        first = left[0]
        group = [i for i in left if i == first or alike_BB[first, i]]
        left = [i for i in left if i not in group]
        if len(group) > 1:
            groups.add(frozenset(f"{i:03}" for i in group))
    return groups


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_nearly_the_same(tmp_path, threshold):
    unit_BD = units(60, seed=3)
    size = list(range(60))
    made(tmp_path / "db", unit_BD, digest=[bytes([i]) * 32 for i in range(60)], width=size,
         height=[1] * 60, size=size)  # fmt: skip
    groups = duplicates(tmp_path / "db", threshold=threshold)
    assert {frozenset(group.paths) for group in groups} == reference(unit_BD, threshold)
    assert [len(g.paths) for g in groups] == sorted((len(g.paths) for g in groups), reverse=True)
    for group in groups:
        assert group.paths == sorted(group.paths, reverse=True), "the largest first"
        first = unit_BD[int(group.paths[0])]
        expected = [first @ unit_BD[int(path)] for path in group.paths]
        np.testing.assert_allclose(group.scores, expected, atol=1e-6)
        assert min(group.scores) >= threshold - 1e-6, "what is said is what was compared"
        assert not group.exact
    assert duplicates(tmp_path / "db", threshold=threshold, near=False) == []


def test_no_group_is_a_chain(tmp_path):
    """Three in a row, the outer two of which are less alike than the threshold."""
    angles = np.radians([0, 20, 40])
    unit_BD = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ones = [1] * 3
    made(tmp_path / "db", unit_BD, digest=[bytes([i]) * 32 for i in range(3)], width=[3, 2, 1],
         height=ones, size=ones, mtime=ones)  # fmt: skip
    (group,) = duplicates(tmp_path / "db", threshold=0.9)
    assert group.paths == ["000", "001"] and group.scores == pytest.approx([1, 0.9397], abs=1e-4)
    (group,) = duplicates(tmp_path / "db", threshold=0.7)
    assert group.paths == ["000", "001", "002"]


def test_a_threshold_that_is_none(tmp_path):
    for threshold in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(UsageError, match="cosine of duplicates is above 0"):
            duplicates(tmp_path / "db", threshold=threshold)


def jpeg(colour):
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(stream, "JPEG")
    return stream.getvalue()


def test_a_page_stands_alone(tmp_path):
    """It names no other file but the images, is escaped, and broken thumbnails do no harm."""
    cells = [
        ("/a/<b>&\"'.png", "1.00", jpeg("red")),
        ("/a/broken.png", "0.99", b"no JPEG"),
        ("/a/none.png", "0.98", None),
    ]
    page.write(tmp_path / "a.html", "<Title>", [("<Heading>", cells)])
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<b>" not in text and "<Heading>" not in text and "&lt;b&gt;&amp;" in text
    assert "http" not in text and text.count("data:image/jpeg;base64,") == 1
    assert text.count("no preview") == 2 and 'href="file:///a/%3Cb%3E' in text
    page.write(tmp_path / "a.png", "Title", [("Heading", cells)])
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 100
    for name, message in (("a.html", "is there already"), ("b.txt", "must end in .png or .html")):
        with pytest.raises(UsageError, match=message):
            page.write(tmp_path / name, "Title", [])


def test_a_broken_thumbnail_is_a_square():
    for broken in (b"", None, b"\xff\xd8\xff", jpeg("red")[:100]):
        assert page.opened(broken).mode == "RGB"
    assert (
        torch.tensor(list(page.opened(jpeg("red")).getpixel((3, 3))))
        .sub(torch.tensor([255, 0, 0]))
        .abs()
        .max()
        < 5
    )
