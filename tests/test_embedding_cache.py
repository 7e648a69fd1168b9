"""The cache of embeddings: what is found again, what is not, and what no accident breaks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_clip import landscape

from clipguide import load_clip
from clipguide.engine import Cache, Engine, default_path
from clipguide.errors import ClipguideError

OLD = 1_700_000_000


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache.sqlite")


@pytest.fixture
def picture(tmp_path):
    return write(tmp_path / "a.png", seed=0)


def write(path, *, seed):
    landscape(40, 40, seed=seed).save(path, "bmp")  # the same size, whatever it shows
    os.utime(path, (OLD, OLD))
    return path


def embed(clip, cache, path, **settings):
    (row,) = Engine(clip, cache=cache, **settings).embed([path])
    assert row.error is None, row.error
    return row.unit_D


@pytest.fixture
def runs(clip, monkeypatch):
    """How many images the model saw."""
    seen, encode = [], clip.encode_prepared

    def counted(prepared):
        seen.extend(prepared)
        return encode(prepared)

    monkeypatch.setattr(clip, "encode_prepared", counted)
    return seen


def test_found_again(clip, cache, picture, runs):
    first = embed(clip, cache, picture)
    assert torch.equal(embed(clip, cache, picture), first)
    assert torch.equal(embed(clip, Cache(cache.path), picture), first)
    assert len(runs) == 1


def test_a_moved_or_copied_file_is_known_by_its_content(clip, cache, picture, runs):
    first = embed(clip, cache, picture)
    moved = picture.rename(picture.with_name("b.png"))
    assert torch.equal(embed(clip, cache, moved), first)
    assert len(runs) == 1


def test_a_changed_file_is_read_anew(clip, cache, picture, runs):
    first = embed(clip, cache, picture)
    write(picture, seed=5)
    os.utime(picture, (OLD + 9, OLD + 9))
    assert not torch.equal(embed(clip, cache, picture), first)
    assert len(runs) == 2


def test_another_file_in_its_place_is_seen_by_its_inode(clip, cache, picture, runs):
    """Of the same size and time, moved over it."""
    first = embed(clip, cache, picture)
    write(picture.with_name("b.png"), seed=5).replace(picture)
    assert not torch.equal(embed(clip, cache, picture), first)
    assert len(runs) == 2


def test_verify_sees_a_change_that_size_and_time_hide(clip, cache, picture, runs):
    first = embed(clip, cache, picture)
    content = landscape(40, 40, seed=5)
    with picture.open("r+b") as stream:  # the same inode
        content.save(stream, "bmp")
    os.utime(picture, (OLD, OLD))
    assert torch.equal(embed(clip, cache, picture), first), "the premise: it looks unchanged"
    assert not torch.equal(embed(clip, cache, picture, verify=True), first)
    assert len(runs) == 2
    embed(clip, cache, picture, verify=True)
    assert len(runs) == 2


def test_a_file_that_was_just_written_is_digested_again(clip, cache, picture, runs):
    """It may change once more within the clock's tick, with the same size."""
    os.utime(picture)
    first = embed(clip, cache, picture)
    now = picture.stat()
    with picture.open("r+b") as stream:
        landscape(40, 40, seed=5).save(stream, "bmp")
    os.utime(picture, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert not torch.equal(embed(clip, cache, picture), first)
    assert len(runs) == 2


def test_a_file_is_settled_by_the_time_that_it_was_looked_at(clip, cache, picture, monkeypatch):
    """Written twice within a tick of two seconds, and between the two read: that the vector is kept
    long after changes nothing."""
    clock, encode = [OLD + 1.0], clip.encode_prepared
    monkeypatch.setattr(time, "time_ns", lambda: int(clock[0] * 1e9))

    def late(prepared):
        clock[0] += 60
        return encode(prepared)

    monkeypatch.setattr(clip, "encode_prepared", late)
    first = embed(clip, cache, picture)
    with picture.open("r+b") as stream:
        landscape(40, 40, seed=5).save(stream, "bmp")
    os.utime(picture, (OLD, OLD))
    second = embed(clip, cache, picture)
    assert not torch.equal(second, first)
    clock[0] += 60
    monkeypatch.setattr(Engine, "read", lambda *_: pytest.fail("it is settled, and read again"))
    assert torch.equal(embed(clip, cache, picture), second)


def test_numbers_of_models_are_not_used_again(cache, picture):
    """One program clears the cache, another model comes, the first goes on with its number."""
    other = Cache(cache.path)
    about = os.stat(picture)
    mine = cache.model("mine", "a")
    other.clear()
    theirs = other.model("theirs", "b")
    cache.add([("x", about, 0, b"digest", np.zeros(4, np.float32))], mine)
    assert other.by_digest(b"digest", theirs) is None
    assert other.by_digest(b"digest", other.model("mine", "a")) is not None
    assert {m["name"]: m["vectors"] for m in cache.info()["models"]} == {"a": 1, "b": 0}


def test_info_names_a_model_as_it_was_called(clip_folder, cache, picture, tmp_path, monkeypatch):
    """Of several names for one model all are told, each from anywhere the same."""
    monkeypatch.chdir(tmp_path)
    os.symlink(clip_folder, tmp_path / "mine")
    for name in ("mine", str(clip_folder), "./mine"):
        embed(load_clip(name), cache, picture)
    (model,) = cache.info()["models"]
    assert model["names"] == sorted([str(clip_folder), str(tmp_path / "mine")])
    assert model["name"] == " = ".join(model["names"])


def test_a_cache_of_an_older_version_is_emptied(tmp_path):
    """Its vectors are of fingerprints of another kind."""
    db = sqlite3.connect(tmp_path / "old")
    db.executescript(
        "CREATE TABLE models (id INTEGER PRIMARY KEY, key TEXT, name TEXT NOT NULL);"
        "INSERT INTO models VALUES (1, 'k', 'n'); CREATE TABLE files (x); CREATE TABLE vectors (y);"
        "PRAGMA user_version=1"
    )
    db.close()
    cache = Cache(tmp_path / "old")
    assert cache.info()["models"] == [] and cache.info()["files"] == 0
    cache.model("key", "name")


def test_a_file_that_changes_while_it_is_read_is_not_kept(clip, cache, picture, monkeypatch):
    """Its vector would be that of one content by the digest of another."""
    prepare = clip.prepare

    def meanwhile(image):
        os.utime(picture, (OLD + 5, OLD + 5))
        return prepare(image)

    monkeypatch.setattr(clip, "prepare", meanwhile)
    embed(clip, cache, picture)
    assert cache.info()["files"] == 0


def test_models_and_settings_are_kept_apart(clip, judge, cache, picture):
    a, b = embed(clip, cache, picture), embed(judge, cache, picture)
    embed(clip, cache, picture, alpha="drop")
    embed(clip, cache, picture, fast=True)
    assert torch.equal(embed(clip, cache, picture), a)
    assert torch.equal(embed(judge, cache, picture), b)
    facts = cache.info()
    assert facts["files"] == 1 and facts["path"] == str(cache.path) and facts["bytes"] > 0
    assert [model["vectors"] for model in facts["models"]] == [1, 1, 1, 1]
    assert len({model["key"] for model in facts["models"]}) == 4
    cache.clear()
    assert cache.info()["files"] == 0 and cache.info()["models"] == []


def test_a_full_disk_costs_the_cache_only(clip, cache, picture):
    embed(clip, cache, picture)
    cache._db.execute("PRAGMA query_only=1")
    with pytest.warns(UserWarning, match="cannot be used any more .* goes on without"):
        embed(clip, cache, write(picture.with_name("b.png"), seed=3))


def test_files_that_are_no_cache(tmp_path):
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(ClipguideError, match="cannot be used .*: remove it, give --cache"):
        Cache(tmp_path / "text")
    assert (tmp_path / "text").read_text().startswith("no database"), "it is not touched"
    with pytest.raises(ClipguideError, match=r"cannot be used \(Not a directory\): give --cache"):
        Cache(tmp_path / "text" / "below" / "deeper")
    newer = Cache(tmp_path / "newer")
    newer._db.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(ClipguideError, match="of a newer clipguide"):
        Cache(tmp_path / "newer")


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPGUIDE_CACHE", str(tmp_path))
    assert default_path() == tmp_path / "embeddings.sqlite"
    monkeypatch.delenv("CLIPGUIDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_path() == tmp_path / "xdg" / "clipguide" / "embeddings.sqlite"


WRITER = """
import os, sys
import numpy as np
from clipguide import load_clip
from clipguide.engine import Cache
cache = Cache(sys.argv[1])
model = cache.model("key", "name")
about = os.stat(sys.argv[1])
for i in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{i}"
    cache.add([(name, about, 0, name.encode(), np.full(64, i, np.float32))], model)
    print(name, flush=True)
"""


def start_writer(path, name, count):
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        text=True,
    )


def check(path, names):
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cache = Cache(path)
    model = cache.model("key", "name")
    for name in names:
        expected = np.full(64, int(name.rsplit("-")[-1]), np.float32)
        assert np.array_equal(cache.by_digest(name.encode(), model), expected), name


def test_two_writers_and_one_killed(tmp_path):
    """Both write at once, one is killed with signal 9: all that they had acknowledged is there."""
    path = tmp_path / "cache.sqlite"
    Cache(path).close()
    endless, short = start_writer(path, "endless", 10**6), start_writer(path, "short", 200)
    acknowledged = [endless.stdout.readline().strip() for _ in range(150)]
    endless.send_signal(signal.SIGKILL)
    acknowledged += endless.stdout.read().split("\n")[:-1]  # the last may be cut
    finished = short.communicate()[0].split()
    endless.wait()
    assert short.returncode == 0 and len(finished) == 200
    check(path, [*acknowledged, *finished])
