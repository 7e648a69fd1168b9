"""Which files are meant: folders, patterns, links in circles, URLs."""

from __future__ import annotations

import os

import pytest

from clipguide.engine import find
from clipguide.errors import UsageError


@pytest.fixture
def home(tmp_path):
    for name in ("b.png", "a.JPG", "note.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(home, *sources, **settings):
    return [os.path.relpath(path, home) for path in find(sources, **settings)]


def test_folders(home):
    passed = []
    assert names(home, home, passed=passed) == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.gif"]
    assert passed == [str(home / "note.txt")]
    assert names(home, home, recursive=False) == ["a.JPG", "b.png"]


def test_links(home):
    """A folder that is linked is looked into; in circles it is not."""
    (home / "sub" / "up").symlink_to(home)
    (home / "again").symlink_to(home / "sub" / "deep")
    assert names(home, home) == ["a.JPG", "again/d.gif", "b.png", "sub/c.webp", "sub/deep/d.gif"]


def test_patterns(home):
    assert names(home, f"{home}/*.png") == ["b.png"]
    assert names(home, f"{home}/**/*.gif") == ["sub/deep/d.gif"]
    (home / "[odd].png").write_bytes(b"")
    assert names(home, home / "[odd].png") == ["[odd].png"], "a file that is there is no pattern"
    with pytest.raises(UsageError, match="No file matches"):
        list(find([f"{home}/*.bmp"]))


def test_each_once_and_in_order(home):
    sources = [home / "sub", home, home / "b.png", home / "nowhere.png", home / "nowhere.png"]
    expected = ["sub/c.webp", "sub/deep/d.gif", "a.JPG", "b.png", "nowhere.png"]
    assert names(home, *sources) == expected


def test_named_files_are_taken_whatever_their_ending(home):
    assert names(home, home / "note.txt") == ["note.txt"]


def test_urls(home):
    with pytest.raises(UsageError, match="is a URL: download it first, or allow it with --urls"):
        list(find(["HTTPS://example.org/a.png"]))
    assert list(find(["https://example.org/a.png"], urls=True)) == ["https://example.org/a.png"]
