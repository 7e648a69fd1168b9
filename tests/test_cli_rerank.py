"""clipguide rerank, as it is typed."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli_score import pictures, run  # noqa: F401
from torch.testing import assert_close

from clipguide import images
from clipguide.cli.rerank import rerank
from clipguide.rerank import DUPLICATE, Criterion, combine, rank


@pytest.fixture
def vectors(clip, pictures):  # noqa: F811
    return clip.encode_pictures([images.load(path) for path in sorted(pictures.iterdir())])


def rows_of(result) -> list[dict]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_order(run, pictures, vectors, clip):  # noqa: F811
    """By the mean cosine with the texts, less twice that with the negative."""
    given = ("--text", "a fox", "--text", "an owl", "--negative", "zebras", "--weight")
    rows = rows_of(run("rerank", pictures, *given, "negative=2", "--format", "jsonl"))
    text_B, negative_B = (
        vectors @ clip.encode_text(texts).mean(0) for texts in (["a fox", "an owl"], ["zebras"])
    )
    expected = sorted(range(5), key=lambda i: -(text_B - 2 * negative_B)[i])
    assert [row["path"] for row in rows] == [str(pictures / f"{i}.png") for i in expected]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    scores = torch.tensor([[row["text"], row["negative"], row["score"]] for row in rows])
    both = torch.stack([text_B, negative_B, text_B - 2 * negative_B], 1)[expected]
    assert_close(scores, both, atol=1e-5, rtol=0)


def test_formats_say_the_same(run, pictures):  # noqa: F811
    given = ("rerank", pictures, "--text", "a fox", "--top", 3, "--format")
    rows = rows_of(run(*given, "jsonl"))
    assert json.loads(run(*given, "json").stdout) == rows
    listed = list(csv.DictReader(io.StringIO(run(*given, "csv").stdout)))
    assert [row["path"] for row in listed] == [row["path"] for row in rows]
    scores = [row["score"] for row in rows]
    np.testing.assert_allclose([float(row["score"]) for row in listed], scores, atol=1e-6)
    head, *lines = run(*given, "text").stdout.splitlines()
    assert head.split() == ["rank", "score", "text", "sure?", "path"]
    assert [line.split()[-1] for line in lines] == [row["path"] for row in rows]


def test_diversity_and_aesthetic(run, pictures, vectors, clip, tmp_path):  # noqa: F811
    weight, bias = torch.randn(1, 24, generator=torch.manual_seed(0)), torch.tensor([5.0])
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    given = ("--text", "a fox", "--aesthetic", "head.safetensors", "--weight", "aesthetic=0.5")
    more = ("--diversity", 0.6, "--top", 4, "--format", "jsonl")
    rows = rows_of(run("rerank", pictures, *given, *more))
    relevance_B = combine(
        [
            Criterion("text", vectors @ clip.encode_text(["a fox"])[0]),
            Criterion("aesthetic", (vectors @ weight.T + bias)[:, 0], 0.5, "aesthetic"),
        ]
    )
    order = rank(relevance_B, vectors, diversity=0.6, keep=4)
    assert [row["path"] for row in rows] == [str(pictures / f"{i}.png") for i in order.best]
    assert 1 < rows[0]["aesthetic"] < 10


def test_duplicates_are_dropped_and_told_of(run, pictures):  # noqa: F811
    Image.open(pictures / "2.png").save(pictures / "again.png", compress_level=1)
    plain = run("rerank", pictures, "--text", "a fox", "--format", "jsonl")
    assert len(rows_of(plain)) == 6
    more = ("--drop-duplicates", "--duplicate", "0.999999")
    result = run("rerank", pictures, "--text", "a fox", "--format", "jsonl", *more)
    assert len(rows_of(result)) == 5
    assert f"again.png is dropped: it is a copy of {pictures / '2.png'}" in result.stderr


@pytest.mark.parametrize("how", ["--copy-to", "--link-to"])
def test_those_kept_are_placed_and_nothing_is_overwritten(run, pictures, tmp_path, how):  # noqa: F811
    given = ("rerank", pictures, "--text", "a fox", "--top", 3, "--format", "jsonl")
    rows = rows_of(run(*given, how, "out/best"))
    placed = sorted((tmp_path / "out/best").iterdir())
    names = [f"{i:02}-{os.path.basename(row['path'])}" for i, row in enumerate(rows, 1)]
    assert [path.name for path in placed] == names
    for path, row in zip(placed, rows):
        assert path.is_symlink() == (how == "--link-to")
        with open(row["path"], "rb") as stream:
            assert path.read_bytes() == stream.read()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / names[2]).write_text("precious")
    (mine / "other.txt").write_text("precious")
    again = run(*given, how, "mine")
    assert again.exit_code == 2 and f"{names[2]} is there already" in again.stderr
    assert {path.name: path.read_text() for path in mine.iterdir()} == {
        names[2]: "precious",
        "other.txt": "precious",
    }
    assert len(list(pictures.iterdir())) == 5


def test_relative_paths_are_linked_rightly(run, pictures, tmp_path):  # noqa: F811
    result = run("rerank", "pictures/1.png", "--text", "a fox", "--link-to", "far/away")
    assert result.exit_code == 0
    assert (tmp_path / "far/away/01-1.png").resolve() == (pictures / "1.png").resolve()


def test_contact_sheet(run, pictures, tmp_path):  # noqa: F811
    given = ("rerank", pictures, "--text", "a fox", "--top", 4, "--contact-sheet")
    assert run(*given, "sheet.png").exit_code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 50 and len(set(sheet.get_flattened_data())) > 100
    before = (tmp_path / "sheet.png").read_bytes()
    again = run(*given, "sheet.png")
    assert again.exit_code == 2 and "is there already" in again.stderr and not again.stdout
    assert (tmp_path / "sheet.png").read_bytes() == before


def test_the_default_threshold_is_the_librarys():
    """Written twice, so that --help need not import torch."""
    assert inspect.signature(rerank).parameters["duplicate"].default == DUPLICATE


def test_unreadable_pictures_among_good_ones(run, pictures, tmp_path):  # noqa: F811
    (pictures / "bad.png").write_bytes(b"")
    given = ("rerank", pictures, "--text", "a fox", "--copy-to", "best")
    result = run(*given)
    assert result.exit_code == 0 and "1 of 6 images" in result.stderr
    assert result.stderr.count("bad.png") == 1
    assert len(list((tmp_path / "best").iterdir())) == 5
    assert run("rerank", pictures, "--text", "a fox", "--strict").exit_code == 1
    alone = run("rerank", pictures / "bad.png", "--text", "a fox", "--copy-to", "none")
    assert alone.exit_code == 1 and not alone.stdout and not (tmp_path / "none").exists()


def test_bad_input(run, pictures, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("precious")
    (tmp_path / "head.safetensors").write_bytes(b"no")
    save_file({"weight": torch.ones(1, 7), "bias": torch.ones(1)}, tmp_path / "wide.safetensors")
    fox = ["--text", "a fox"]
    for arguments, message in [
        (fox, "Missing argument"),
        ([tmp_path / "nothing*", *fox], "No file matches"),
        ([pictures], "nothing to rank by"),
        ([pictures, "--text", ""], "A text is empty"),
        ([pictures, "--negative", " "], "A text is empty"),
        ([pictures, *fox, "--top", "0"], "--top"),
        ([pictures, *fox, "--diversity", "2"], "--diversity"),
        ([pictures, *fox, "--weight", "texts=1"], "Did you mean text?"),
        ([pictures, *fox, "--weight", "text"], "NAME=NUMBER"),
        ([pictures, *fox, "--weight", "text=inf"], "finite"),
        ([pictures, *fox, "--copy-to", "file"], "is not a folder"),
        ([pictures, *fox, "--link-to", "file"], "is not a folder"),
        ([pictures, *fox, "--copy-to", "a", "--link-to", "b"], "not both"),
        ([pictures, *fox, "--contact-sheet", "a.jpg"], "in .png"),
        ([pictures, *fox, "--aesthetic", "wide.safetensors"], "trained on another CLIP"),
        ([pictures, *fox, "--aesthetic", "missing.safetensors"], "missing.safetensors"),
    ]:
        result = run("rerank", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr and not result.stdout, (arguments, result.output)
    assert run("rerank", pictures, *fox, "--copy-to", "file/below").exit_code == 1
    assert (tmp_path / "file").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 5, "nothing was made: the cache and these four"
