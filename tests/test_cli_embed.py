"""clipguide embed and cache, as they are typed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from test_clip import landscape
from typer.testing import CliRunner

from clipguide.cli.app import app
from clipguide.engine import Engine, table
from clipguide.errors import UsageError


@pytest.fixture
def pictures(tmp_path):
    home = tmp_path / "pictures"
    home.mkdir()
    for i in range(3):
        landscape(50, 40, seed=i).save(home / f"{i}.png")
    return home


@pytest.fixture
def run(clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, clip=clip_folder, **settings):
        named = [] if clip is None or arguments[0] == "cache" else ["--clip", str(clip)]
        return CliRunner().invoke(app, [*map(str, arguments), *named], **settings)

    return invoke


@pytest.mark.parametrize("end", ["npz", "parquet"])
def test_round_trip(run, clip, pictures, tmp_path, end):
    result = run("embed", pictures, "--out", f"a.{end}")
    assert result.exit_code == 0, result.output
    assert f"a.{end}  3 vectors of 24" in result.stdout
    rows = list(table.read(tmp_path / f"a.{end}", key=Engine(clip).key))
    expected = list(Engine(clip).embed(sorted(pictures.iterdir())))
    assert [row.path for row in rows] == [row.path for row in expected]
    assert all(torch.equal(a.unit_D, b.unit_D) for a, b in zip(rows, expected))
    assert run("embed", f"a.{end}", "--out", "b.npz").exit_code == 0  # in place of images
    assert len(np.load(tmp_path / "b.npz")["paths"]) == 3


def test_vectors_of_another_model_are_refused(run, pictures, judge_folder, tmp_path):
    run("embed", pictures, "--out", "a.npz")
    result = run("embed", "a.npz", "--out", "b.npz", clip=judge_folder)
    assert result.exit_code == 2 and "made by another model" in result.stderr
    result = run("embed", "a.npz", "--out", "b.npz", "--alpha", "drop")
    assert result.exit_code == 2 and "made by other settings" in result.stderr
    assert not (tmp_path / "b.npz").exists()
    for end in ("npz", "parquet"):
        (tmp_path / f"c.{end}").write_text("nonsense")
        with pytest.raises(UsageError, match="is not a file of vectors"):
            list(table.read(tmp_path / f"c.{end}", key="key"))


def test_bad_pictures(run, pictures, tmp_path):
    (pictures / "new\nline.png").write_text("no image")
    result = run("embed", pictures, "nowhere.png", "--out", "a.npz")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert "new\\nline.png is not an image" in lines[0]
    assert lines[1:] == [
        "clipguide: There is no file nowhere.png.",
        "clipguide: 2 of 5 images could not be read.",
    ]
    assert run("embed", pictures, "--out", "b.npz", "--strict").exit_code == 1
    assert (tmp_path / "b.npz").exists(), "what could be read is not lost"
    result = run("embed", "nowhere.png", "not/there", "--out", "c.npz")
    assert result.exit_code == 2 and not (tmp_path / "c.npz").exists()
    said = "clipguide: There is no file or folder nowhere.png, nor any of the others."
    assert result.stderr.splitlines() == [said]
    for end in ("npz", "parquet"):
        result = run("embed", pictures / "new\nline.png", "--out", f"c.{end}")
        assert result.exit_code == 1
        assert f"No image could be read, so c.{end} is not written." in result.stderr
        assert not (tmp_path / f"c.{end}").exists()


def test_names_on_stdin(run, pictures, tmp_path):
    names = [str(path) for path in sorted(pictures.iterdir())]
    for between in ("\n", "\0"):
        given = between.join(names[:2]) + between
        result = run("embed", "-", "--out", "a.npz", "--force", input=given)
        assert result.exit_code == 0, result.output
        assert np.load(tmp_path / "a.npz")["paths"].tolist() == names[:2]
    result = run("embed", "-", "--out", "b.npz", input="")
    assert result.exit_code == 2 and "No images are named" in result.stderr


def test_what_is_refused(run, pictures, tmp_path):
    (tmp_path / "a.npz").write_text("precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.txt").write_text("")
    for arguments, message in [
        ((pictures, "--out", "a.npz"), "a.npz is there already"),
        ((pictures, "--out", "a.txt"), "must end in .npz or .parquet"),
        ((pictures, "--out", "none/a.npz"), "There is no folder none"),
        (("empty", "--out", "b.npz"), "There are no images in empty."),
        (("notes", "--out", "b.npz"), "There are no images in notes (other files there: 1)."),
        (("*.bmp", "--out", "b.npz"), "No file matches *.bmp"),
        (("http://a/b.png", "--out", "b.npz"), "is a URL"),
        ((pictures, "--out", "b.npz", "--batch", 0), "batch must be at least 1"),
        ((pictures, "--out", "b.npz", "--alpha", "red"), "alpha is white or drop"),
    ]:
        result = run("embed", *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr, result.stderr
    assert (tmp_path / "a.npz").read_text() == "precious"
    assert not list(tmp_path.glob(".*.part"))


def test_cache(run, pictures, tmp_path):
    facts = json.loads(run("cache", "info", "--json").stdout)
    assert facts["files"] == 0 and not (tmp_path / "cache").exists()
    run("embed", pictures, "--out", "a.npz")
    assert "3 files" in run("cache", "info").stdout
    assert json.loads(run("cache", "info", "--json").stdout)["models"][0]["vectors"] == 3
    assert "is empty" in run("cache", "clear").stdout
    assert "0 files" in run("cache", "info").stdout
    run("embed", pictures, "--out", "b.npz", "--no-cache")
    assert "0 files" in run("cache", "info").stdout


def test_a_broken_cache(run, pictures, tmp_path):
    """The user's own is said to be broken, and not used; one that is named is an error."""
    (tmp_path / "cache").mkdir()
    broken = tmp_path / "cache" / "embeddings.sqlite"
    broken.write_text("nonsense " * 200)
    result = run("embed", pictures, "--out", "a.npz")
    assert result.exit_code == 0 and "cannot be used" in result.stderr
    result = run("embed", pictures, "--out", "b.npz", "--cache", broken)
    assert result.exit_code == 1 and "cannot be used" in result.stderr
    assert broken.read_text().startswith("nonsense")


def test_a_clip_that_is_damaged(run, pictures, clip_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    (copy / "open_clip_model.safetensors").write_bytes(b"cut")
    result = run("embed", pictures, "--out", "a.npz", clip=copy)
    assert result.exit_code == 1 and "cannot be loaded" in result.stderr


@pytest.mark.parametrize(
    "verb",
    [
        ("embed", "--out", "{}.npz"),
        ("score", "--text", "a fox"),
        ("rerank", "--text", "a fox"),
        ("classify", "--labels", "fox,house"),
        ("index", "--db", "{}"),
    ],
    ids=lambda verb: verb[0],
)
def test_one_meter_of_all_that_embed(run, pictures, verb):
    """On stderr where that is a terminal, and nowhere else."""
    pytest.importorskip("lancedb")
    quiet, shown = (
        run(verb[0], pictures, *(word.format(name) for word in verb[1:]), env=env)
        for name, env in (("quiet", {}), ("shown", {"FORCE_COLOR": "1"}))
    )
    assert quiet.exit_code == 0 and "a second" not in quiet.output, quiet.output
    assert shown.exit_code == 0, shown.output
    assert "3/" in shown.stderr and "a second" in shown.stderr and "a second" not in shown.stdout
