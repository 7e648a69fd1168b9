"""An index that is away, contended, stale or damaged: told apart, and never silently wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from test_clip import landscape
from typer.testing import CliRunner

pytest.importorskip("lancedb")

from clipguide.cli.app import app
from clipguide.engine import Engine
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.retrieval import Index, Query, update
from clipguide.retrieval.clips import there
from clipguide.retrieval.store import Store

COUNTS = ("new", "changed", "moved", "same", "gone", "failed")


@pytest.fixture
def home(tmp_path):
    """Four images in two folders, as old as if they had been there for a while."""
    home = tmp_path / "images"
    (home / "more").mkdir(parents=True)
    for i in range(4):
        path = (home if i < 2 else home / "more") / f"{i}.png"
        landscape(50, 40, seed=i).save(path)
        os.utime(path, (1e9, 1e9))
    return home


@pytest.fixture
def run(clip, tmp_path, home):
    def update_(*sources, clip=clip, db=tmp_path / "db", **options):
        *_, last = update(db, sources or [home], engine=Engine(clip), **options)
        update_.errors = last.errors
        return {name: getattr(last, name) for name in COUNTS if getattr(last, name)}

    return update_


def paths(db):
    return sorted(os.path.basename(path) for path in Store(db).table.to_arrow()["path"].to_pylist())


NAMES = [f"{i}.png" for i in range(4)]
ASK = Query(torch.ones(24) / 24**0.5)


def test_an_endpoint_that_refuses_is_no_damage(monkeypatch):
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ALLOW_HTTP", "true"),
                        ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"),
                        ("REGION", "us-east-1")):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(ClipguideError, match="cannot be reached") as raised:
        Index("s3://bucket/index")
    assert "damaged" not in str(raised.value) and "delete" not in str(raised.value)


def test_a_disk_that_goes_away_is_no_damage(run, tmp_path):
    run()
    index = Index(tmp_path / "db")
    (tmp_path / "db").rename(tmp_path / "elsewhere")
    with pytest.raises(ClipguideError, match="cannot be reached"):
        index.search(ASK)
    (tmp_path / "elsewhere").rename(tmp_path / "db")
    assert len(index.search(ASK).hits) == 4, "it is asked again where it is back"


COMPACT = """
import sys, datetime, lancedb
table = lancedb.connect(sys.argv[1]).open_table("pictures")
table.optimize(cleanup_older_than=datetime.timedelta(0), delete_unverified=True)
"""


def test_an_index_held_open_across_a_compaction(run, home, tmp_path):
    """As another program makes it, which removes the files of the version that is open."""
    run(home / "0.png")
    run()
    index = Index(tmp_path / "db")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPACT, str(tmp_path / "db")], check=True
    )
    assert sorted(os.path.basename(hit.path) for hit in index.search(ASK).hits) == NAMES


@pytest.mark.parametrize("part", ["data/*", "_versions/*.manifest", "data/*.lance truncated"])
def test_damage_is_proved(run, tmp_path, part):
    run()
    pattern, _, truncated = part.partition(" ")
    for path in (tmp_path / "db" / "pictures.lance").glob(pattern):
        path.write_bytes(b"LANC") if truncated else path.unlink()
    for ask in (lambda: Index(tmp_path / "db").search(ASK), run):
        with pytest.raises(ClipguideError, match="is damaged .*: move that folder away"):
            ask()


def test_two_that_make_the_table_at_once(run, clip, judge, home, tmp_path):
    """The second opens what the first has made; of another CLIP it is refused."""
    first, second = (Store(f"file://{tmp_path}/db", make=True) for _ in range(2))
    engine = Engine(clip)
    for store in (first, second):
        store.create(clip.embed_dim, key=engine.key, model="one")
    assert second.count() == 0
    third = Store(f"file://{tmp_path}/other", make=True)
    first = Store(f"file://{tmp_path}/other", make=True)
    first.create(clip.embed_dim, key=engine.key, model="one")
    with pytest.raises(UsageError, match="was made by the CLIP one"):
        third.create(judge.embed_dim, key=Engine(judge).key, model="another")


def test_two_runs_on_one_uri(run, home, tmp_path, monkeypatch):
    """One starts and ends while the other is at its first batch: each image once."""
    url, encode, nested = f"file://{tmp_path}/db", Engine._encode, []

    def meanwhile(self, frames):
        if not nested:
            nested.append(True)
            run(db=url)
        return encode(self, frames)

    monkeypatch.setattr(Engine, "_encode", meanwhile)
    run(db=url)
    assert nested and paths(url) == NAMES
    assert run(db=url) == {"same": 4}


@pytest.mark.parametrize("uri", [False, True])
def test_rows_that_are_there_twice_are_healed(run, home, tmp_path, uri):
    db = f"file://{tmp_path}/db" if uri else tmp_path / "db"
    run(db=db)
    table = Store(db).table
    table.add(table.to_arrow())
    assert len(paths(db)) == 8
    assert run(db=db) == {"same": 4} and paths(db) == NAMES


def test_settled_is_of_the_time_of_reading(run, home, tmp_path, monkeypatch):
    """What is kept is when a file was looked at, before the model saw it: the commit is later."""
    moments, encode = [], Engine._encode

    def timed(self, frames):
        moments.append(time.time_ns())
        return encode(self, frames)

    monkeypatch.setattr(Engine, "_encode", timed)
    begin = time.time_ns() // 1000
    run()
    for moment in Store(tmp_path / "db").table.to_arrow()["indexed_at"].cast("int64").to_pylist():
        assert begin <= moment <= moments[0] // 1000


def test_a_linked_folder_that_is_away(run, home, tmp_path):
    """Its target is gone, or its mount point is empty: the rows stay, until --prune."""
    disk = tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    shutil.move(home / "more" / "3.png", disk / "deep" / "3.png")
    (home / "link").symlink_to(disk)
    run()
    assert paths(tmp_path / "db") == NAMES
    disk.rename(tmp_path / "away")
    assert run() == {"same": 3} and paths(tmp_path / "db") == NAMES
    assert "link/deep is not there, and 1 image of it stays in the index" in run.errors[0]
    disk.mkdir()  # as a mount point without its disk
    assert run() == {"same": 3} and paths(tmp_path / "db") == NAMES
    assert run(prune=True) == {"same": 3, "gone": 1}


@pytest.mark.parametrize("prune", [False, True])
def test_a_folder_that_may_not_be_read(run, home, tmp_path, monkeypatch, prune):
    """Nobody knows what is in it and below it: its rows stay, even with --prune. Whoever runs the
    tests may read all, so that the system's refusal is made here."""
    (home / "more" / "deep").mkdir()
    shutil.move(home / "more" / "3.png", home / "more" / "deep" / "3.png")
    (home / "more2").mkdir()
    shutil.move(home / "1.png", home / "more2" / "1.png")
    monkeypatch.chdir(tmp_path)
    run("images")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (home / "more" / "2.png").unlink()
    shutil.rmtree(home / "more" / "deep")
    (home / "more" / "4.txt").write_text("it is not empty")
    shutil.rmtree(home / "more2")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        counts = {"same": 1, "gone": 1} if prune else {"same": 1}
        assert run("images", prune=prune) == counts
    kept = NAMES if not prune else ["0.png", "2.png", "3.png"]
    assert paths(tmp_path / "db") == kept
    assert run.errors[0] == f"{home / 'more'} cannot be read: what the index holds of it stays."
    assert run("images", prune=True)["gone"] == len(kept) - 1, "it can be read again"


def test_a_checkpoint_that_was_moved_is_not_there(tmp_path):
    """Of open_clip's training, under its model's name; with a device and words behind it."""
    file = tmp_path / "epoch_5.pt"
    names = [f"RN50/{file}", f"mini+2*{file}", f"{file}@cuda:bfloat16", f"RN50/{file}~{tmp_path}"]
    assert not any(map(there, names))
    file.write_bytes(b"")
    assert all(map(there, [*names, "mini", "ViT-B-32/openai", "hf-hub:org/name"]))


def test_the_clip_is_adopted_wherever_one_is(clip_folder, home, tmp_path, monkeypatch):
    """A relative --clip; then search and index from another folder, without naming it."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == code, result.output
        return result

    shutil.copytree(clip_folder, tmp_path / "mine")
    monkeypatch.setenv("CLIPGUIDE_DB", str(tmp_path / "db"))
    monkeypatch.chdir(tmp_path)
    invoke("index", "images", "--clip", "mine")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert Store(tmp_path / "db").model == str(tmp_path / "mine")
    assert len(invoke("search", "a red fox").stdout.splitlines()) == 4
    assert "4 unchanged" in invoke("index", home).stdout
    (tmp_path / "mine").rename(tmp_path / "moved")
    said = invoke("search", "a red fox", code=2).stderr
    assert "was made by the CLIP" in said and "--clip" in said
    assert "4 unchanged" in invoke("index", home, "--clip", tmp_path / "moved").stdout
    assert len(invoke("search", "a red fox").stdout.splitlines()) == 4, "the name is kept"


def table_of(path, rows, **kinds):
    import pyarrow as pa
    import pyarrow.parquet

    names = list(rows)
    columns = [pa.array(rows[name], kinds.get(name)) for name in names]
    pa.parquet.write_table(pa.table(columns, names=names), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,caption\n0.png,caf\xe9 fox\n".encode("latin-1"), "captions.csv is not UTF-8"),
        (b"path,caption\nnone.png,a\nno.png,b\n", "0 of 2 captions .* belong to an image here"),
        (b"path,caption\n", "has no rows"),
        (b"path,caption\n0.png,\n", "has no captions"),
        (b"path,caption\n0.png,a\n0.png,b\n", "0.png has two captions, the second in line 3"),
        (b"path,caption\n0.png,a fox, red\n", "more cells than columns in line 2"),
        ({"path": ["0.png"], "caption": [["a", "b"]]}, r"A text is a list, \['a', 'b'\], in"),
        ({"path": [5], "caption": ["a"]}, "A text is int, 5, in .*row 1"),
        ({"path": ["0.png"], "caption": [b"caf\xe9"]}, "A text is not UTF-8 in .*row 1"),
    ],
)
def test_captions_that_are_none(run, home, tmp_path, content, message):
    """One sentence before anything is embedded; nothing is stored as its repr."""
    name = home / ("captions.csv" if isinstance(content, bytes) else "captions.parquet")
    if isinstance(content, bytes):
        name.write_bytes(content)
    else:
        table_of(name, content)
    with pytest.raises(UsageError, match=message):
        run(captions=name)
    assert not (tmp_path / "db" / "pictures.lance").exists()


def test_captions_of_windows_and_numbers(run, home, tmp_path):
    """Backslashes part folders; what looks like a number is text; what does not match is told."""
    (home / "captions.csv").write_text(
        'path,caption\nmore\\2.png,007\n.\\0.png,"a fox, red"\nnone.png,x\n'
    )
    with pytest.warns(ClipguideWarning, match="2 of 3 captions .* belong to an image here"):
        run(captions=home / "captions.csv")
    found = Store(tmp_path / "db").table.to_arrow().to_pylist()
    captions = {os.path.basename(row["path"]): row["caption"] for row in found}
    assert captions == {"0.png": "a fox, red", "1.png": None, "2.png": "007", "3.png": None}


def test_a_changed_image_keeps_the_caption_of_a_table(run, home, tmp_path):
    (home / "captions.csv").write_text("path,caption\n0.png,a fox\n1.png,a hare\n")
    run(captions=home / "captions.csv")
    landscape(60, 40, seed=9).save(home / "0.png")
    assert run() == {"changed": 1, "same": 3}
    found = Store(tmp_path / "db").table.to_arrow().to_pylist()
    assert {row["caption"] for row in found} == {"a fox", "a hare", None}
