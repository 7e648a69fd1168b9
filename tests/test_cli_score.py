"""clipguide score, as it is typed, against scores computed from the CLIP's own vectors."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
import typer
from test_clip import landscape
from typer.testing import CliRunner

from clipguide import images
from clipguide.cli import console
from clipguide.cli.app import _Commands
from clipguide.cli.rerank import rerank
from clipguide.cli.score import Means, score

TEXTS = ["a red fox", "an owl", "two zebras"]


@pytest.fixture
def run(clip_folder, tmp_path, monkeypatch):
    """Types a command at a CLIP of random weights, in an empty folder."""
    monkeypatch.setenv("CLIPGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(cls=_Commands, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(score)
    app.command()(rerank)

    def invoke(*arguments, clip=clip_folder, **settings):
        typed = [*map(str, arguments), "--clip", str(clip)]
        return CliRunner().invoke(app, typed, catch_exceptions=False, **settings)

    return invoke


@pytest.fixture
def pictures(tmp_path):
    home = tmp_path / "pictures"
    home.mkdir()
    for i in range(5):
        landscape(50 + 9 * i, 40, seed=i).save(home / f"{i}.png")
    return home


@pytest.fixture
def cosines(clip, pictures):
    """Of all images with TEXTS, in float64."""
    loaded = [images.load(path) for path in sorted(pictures.iterdir())]
    image_BD, text_ND = clip.encode_pictures(loaded), clip.encode_text(TEXTS)
    return np.asarray(image_BD, np.float64) @ np.asarray(text_ND, np.float64).T


def options(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--text", text)]


def from_jsonl(output: str) -> np.ndarray:
    return np.array([list(json.loads(line)["scores"].values()) for line in output.splitlines()])


def test_metrics(run, pictures, cosines, clip):
    logits = np.exp(clip.logit_scale * cosines)
    expected = {
        "cosine": cosines,
        "clipscore": 2.5 * cosines.clip(0),
        "probability": logits / logits.sum(1, keepdims=True),
    }
    for metric, scores in expected.items():
        result = run("score", pictures, *options(*TEXTS), "--metric", metric, "--format", "jsonl")
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(from_jsonl(result.stdout), scores, atol=1e-5)
        for text, mean in zip(TEXTS, scores.mean(0)):
            assert f"mean {metric} of 5 images with {text!r}: {mean:.4f}" in result.stderr


def test_references(run, pictures, cosines, clip):
    references = ["a fox", "a zebra"]
    both = np.asarray(clip.encode_text([*TEXTS, *references]), np.float64)
    nearest = (both[:3] @ both[3:].T).max(1).clip(0)
    score = 2.5 * cosines.clip(0)
    total = np.where(score + nearest > 0, score + nearest, 1)
    given = [part for reference in references for part in ("--reference", reference)]
    more = ("--metric", "refclipscore", "--format", "jsonl")
    result = run("score", pictures, *options(*TEXTS), *given, *more)
    np.testing.assert_allclose(from_jsonl(result.stdout), 2 * score * nearest / total, atol=1e-5)


def test_formats_say_the_same(run, pictures, cosines):
    results = {
        kind: run("score", pictures, *options(*TEXTS), "--format", kind)
        for kind in ("text", "csv", "tsv", "json", "jsonl")
    }
    paths = [str(path) for path in sorted(pictures.iterdir())]
    rows = json.loads(results["json"].stdout)
    assert [row["path"] for row in rows] == paths
    np.testing.assert_allclose([list(row["scores"].values()) for row in rows], cosines, atol=1e-5)
    assert [json.loads(line) for line in results["jsonl"].stdout.splitlines()] == rows
    head, *lines = csv.reader(io.StringIO(results["csv"].stdout))
    assert head == ["path", *TEXTS] and [line[0] for line in lines] == paths
    np.testing.assert_allclose(np.array(lines)[:, 1:].astype(float), cosines, atol=1e-5)
    apart = csv.reader(io.StringIO(results["tsv"].stdout), delimiter="\t")
    assert list(apart) == [head, *lines]
    assert all(len(cell.split(".")[1]) == 6 for line in lines for cell in line[1:])
    for kind, end in (("paths", "\n"), ("paths0", "\0")):
        told = run("score", pictures, *options(*TEXTS), "--format", kind).stdout
        assert told == "".join(path + end for path in paths)
    head, *lines = results["text"].stdout.splitlines()
    assert head.split("  ")[-1] == "path" and "a red fox" in head
    shown = np.array([re.findall(r"-?\d\.\d{4}", line)[:3] for line in lines], dtype=float)
    np.testing.assert_allclose(shown, cosines, atol=1e-4)
    one = run("score", pictures, "--text", TEXTS[0]).stdout.splitlines()
    assert re.fullmatch(rf"{cosines[0, 0]:.4f} [a-z ]{{9}}  {re.escape(paths[0])}", one[0])


def test_texts_of_a_file_and_a_prefix(run, pictures, tmp_path, clip):
    (tmp_path / "texts.txt").write_text("an owl\n\n  two zebras \na red fox\n", encoding="utf-8")
    given = ("--text", "a red fox", "--texts", "texts.txt", "--prefix", "my ")
    rows = run("score", pictures / "0.png", *given, "--format", "jsonl").stdout
    scores = json.loads(rows)["scores"]
    assert list(scores) == TEXTS, "each once, those of the command line first"
    image_D = clip.encode_pictures([images.load(pictures / "0.png")])[0]
    text_ND = clip.encode_text([f"my {text}" for text in TEXTS])
    np.testing.assert_allclose(list(scores.values()), text_ND @ image_D, atol=1e-5)


@pytest.mark.parametrize("end", ["csv", "tsv", "jsonl"])
def test_pairs(run, pictures, cosines, end, tmp_path):
    """One image may have many texts; paths are relative to the file."""
    rows = [{"image": f"{i % 5}.png", "text": TEXTS[i % 3], "reference": "a fox"} for i in range(9)]
    rows.insert(4, {"image": "missing.png", "text": "an owl", "reference": "a fox"})
    rows.append(rows[4])
    file = pictures / f"pairs.{end}"
    with file.open("w", encoding="utf-8", newline="") as stream:
        if end == "jsonl":
            stream.write("".join(json.dumps(row) + "\n\n" for row in rows))
        else:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if end == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    result = run("score", "--pairs", file, "--format", "jsonl")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in found] == [TEXTS[i % 3] for i in range(9)]
    assert found[7]["path"] == str(pictures / "2.png")
    expected = [cosines[i % 5, i % 3] for i in range(9)]
    np.testing.assert_allclose([row["score"] for row in found], expected, atol=1e-5)
    assert result.stderr.count("missing.png") == 1 and "2 of 11" in result.stderr
    assert f"mean cosine of 9 images: {np.mean(expected):.4f}" in result.stderr
    more = run("score", "--pairs", file, "--metric", "refclipscore", "--strict")
    assert more.exit_code == 1 and len(more.stdout.splitlines()) == 9


def test_bad_pictures_are_told_of_once_and_counted(run, pictures, tmp_path):
    (pictures / "bad.png").write_bytes(b"\x89PNG\r\n")
    (pictures / "notes.txt").write_text("not an image")
    result = run("score", pictures, "--text", "a fox")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 5
    assert result.stderr.count("bad.png") == 1 and "1 of 6 images" in result.stderr
    assert run("score", pictures, "--text", "a fox", "--strict").exit_code == 1
    alone = run("score", pictures / "bad.png", "--text", "a fox", "--format", "json")
    assert alone.exit_code == 1 and json.loads(alone.stdout) == []


def test_rows_are_printed_while_pictures_are_read(run, tmp_path, monkeypatch):
    """Memory is flat: of 60 images only as many are read ahead as the engine holds."""
    many = tmp_path / "many"
    many.mkdir()
    for i in range(60):
        landscape(8, 8, seed=i).save(many / f"{i:02}.png")
    read, seen = [], []
    load, tell = images.load_frames, console.tell
    monkeypatch.setattr(images, "load_frames", lambda *a, **k: read.append(a) or load(*a, **k))
    monkeypatch.setattr(console, "tell", lambda line: seen.append(len(read)) or tell(line))
    result = run("score", many, "--text", "a fox", "--batch", "2", "--workers", "1", "--no-cache")
    assert len(result.stdout.splitlines()) == len(seen) == 60
    assert seen[0] < 20 and seen[30] < 50
    assert len(Means("cosine", ["a"])._sums) == 1, "sums, not scores"


def test_names_with_line_breaks_stay_on_their_line(run, tmp_path):
    landscape(30, 30).save(tmp_path / "a\nb.png")
    table = run("score", "a\nb.png", "--text", "a fox").stdout
    assert len(table.splitlines()) == 1 and "a\\nb.png" in table
    lines = run("score", "a\nb.png", "--text", "a fox", "--format", "csv").stdout
    rows = list(csv.reader(io.StringIO(lines)))
    assert rows[1][0] == "a\nb.png"


def test_long_texts(run, pictures, clip):
    text = "a red fox jumps over the lazy dog"
    cut = run("score", pictures / "0.png", "--text", text)
    assert "'the lazy dog' is lost" in cut.stderr
    chunk = run("score", pictures / "0.png", "--text", text, "--long", "chunk")
    assert "lost" not in chunk.stderr and chunk.stdout != cut.stdout


def test_bad_input(run, pictures, tmp_path):
    (tmp_path / "latin.txt").write_bytes("un café\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.csv").write_bytes("image,text\n0.png,café\n".encode("latin-1"))
    (tmp_path / "other.csv").write_text("image,texts\n0.png,a fox\n")
    (tmp_path / "none.csv").write_text("image,text\n")
    (tmp_path / "comma.csv").write_text("image,text\n0.png,a fox\n0.png,a fox, red\n")
    (tmp_path / "number.jsonl").write_text('{"image": "0.png", "text": 5}\n')
    (tmp_path / "blank.jsonl").write_text('{"image": "a.png", "text": " "}\n')
    (tmp_path / "wrong.jsonl").write_text("[1]\n")
    for arguments, message in [
        (["--text", "a fox"], "No images are named"),
        ([tmp_path / "nothing*", "--text", "a fox"], "No file matches"),
        ([pictures], "There is no text"),
        ([pictures, "--text", " "], "A text is empty"),
        ([pictures, "--texts", "latin.txt"], "is not UTF-8 text"),
        ([pictures, "--texts", "empty.txt"], "There are no texts"),
        ([pictures, "--texts", "missing.txt"], "no file of texts missing.txt"),
        ([pictures, "--text", "a", "--long", "wrap"], "cut or chunk"),
        ([pictures, "--text", "a", "--metric", "refclipscore"], "give --reference"),
        ([pictures, "--text", "a", "--reference", "b"], "does not use --reference"),
        ([pictures, "--text", "a", "--metric", "probability"], "is always 1"),
        ([pictures, "--pairs", "none.csv"], "give no others"),
        (["--pairs", "none.csv"], "has no rows"),
        (["--pairs", "none.txt"], "must end in .csv"),
        (["--pairs", "missing.csv"], "cannot be read"),
        (["--pairs", "latin.csv"], "is not UTF-8 text"),
        (["--pairs", "other.csv"], "other.csv has no column 'text'"),
        (["--pairs", "comma.csv"], "more cells than columns in line 3 of comma.csv"),
        (["--pairs", "number.jsonl"], "A text is int, 5, in line 1 of number.jsonl"),
        (["--pairs", "blank.jsonl"], "The text is empty"),
        (["--pairs", "wrong.jsonl"], "no JSON object in line 1"),
    ]:
        result = run("score", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr and not result.stdout, (arguments, result.output)
    unknown = run("score", pictures, "--text", "a", "--metric", "cos")
    assert unknown.exit_code == 2 and "refclipscore" in unknown.stderr
