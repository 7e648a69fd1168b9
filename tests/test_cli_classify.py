"""clipguide classify, as it is typed, against the library on the same images."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
import typer
from PIL import Image
from test_clip import landscape
from typer.testing import CliRunner

from clipguide import images
from clipguide.cli.app import _Commands
from clipguide.cli.classify import classify
from clipguide.zero_shot import Classifier, fit_probe, fit_tip

LABELS = ["fox", "owl", "gnu"]


@pytest.fixture
def run(clip_folder, tmp_path, monkeypatch):
    """Types `classify` with a CLIP of random weights, in an empty folder."""
    monkeypatch.setenv("CLIPGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(cls=_Commands, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(classify)
    app.command("other")(lambda: None)

    def invoke(*arguments):
        typed = ["classify", *map(str, arguments), "--clip", clip_folder, "--templates", "plain"]
        return CliRunner().invoke(app, list(map(str, typed)), catch_exceptions=False)

    return invoke


@pytest.fixture
def shown(tmp_path):
    """Two images in a folder for each label."""
    for n, label in enumerate(LABELS):
        (tmp_path / "shown" / label).mkdir(parents=True)
        for k in range(2):
            picture = landscape(40, 50, seed=10 * n + k).point(lambda v, n=n: v // (n + 1))
            picture.save(tmp_path / "shown" / label / f"{k}.png")
    return tmp_path / "shown"


def vectors(clip, folder):
    paths = sorted(folder.rglob("*.png"))
    return paths, clip.encode_pictures([images.load(path) for path in paths])


def test_names_are_the_classifiers(run, clip, shown):
    paths, image_BD = vectors(clip, shown)
    found = Classifier(clip, LABELS, templates="plain").name(image_BD, top=2)
    result = run(shown, "--labels", "fox,owl,gnu", "--top", 2, "--format", "json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["path"] for row in rows] == list(map(str, paths))
    for row, names in zip(rows, found):
        assert [one["label"] for one in row["labels"]] == [name.label for name in names]
        for one, name in zip(row["labels"], names):
            assert one["probability"] == pytest.approx(name.probability, abs=1e-5)
            assert one["cosine"] == pytest.approx(name.cosine, abs=1e-5)
    table = run(shown, "--labels", "fox,owl,gnu", "--top", 2)
    assert len(table.stdout.splitlines()) == 6 and "6 images whose folders name" in table.stderr
    for line, names in zip(table.stdout.splitlines(), found):  # the word is for the label found
        first, second = names
        assert line.startswith(f"{first.label} {first.probability:.1%} (")
        assert f")  {second.label} {second.probability:.1%}  {shown}" in line
    text = run(shown, "--labels", "fox,owl,gnu", "--top", 2, "--format", "csv").stdout
    cells = list(csv.DictReader(io.StringIO(text)))
    assert [cell["label"] for cell in cells] == [n.label for names in found for n in names]
    assert [cell["rank"] for cell in cells] == ["1", "2"] * 6


@pytest.mark.parametrize(("method", "fit"), [("probe", fit_probe), ("tip", fit_tip)])
def test_few_shots(run, clip, shown, method, fit):
    """The folders name the labels, in the order of their names."""
    paths, image_BD = vectors(clip, shown)
    labels = sorted(LABELS)
    target = [labels.index(path.parent.name) for path in paths]
    text_ND = Classifier(clip, labels, templates="plain").text_ND
    options = {"logit_scale": clip.logit_scale} if method == "tip" else {}
    share_BN = fit(image_BD, target, text_ND=text_ND, **options).probabilities(image_BD)
    result = run(shown, "--few-shot", shown, "--method", method, "--format", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["labels"][0]["label"] for row in rows] == [labels[n] for n in share_BN.argmax(1)]
    for row, share in zip(rows, share_BN.max(1).values):
        assert row["labels"][0]["probability"] == pytest.approx(float(share), abs=1e-4)


def test_examples_that_are_not_the_labels(run, shown, tmp_path):
    result = run(shown, "--few-shot", shown, "--labels", "fox,owl,gnu,cat")
    assert result.exit_code == 2 and "no folder for the label 'cat'" in result.stderr
    result = run(shown, "--few-shot", shown, "--labels", "fox,owl")
    assert result.exit_code == 2 and "a folder 'gnu' that is no label" in result.stderr
    result = run(shown, "--few-shot", tmp_path / "missing")
    assert result.exit_code == 2 and "cannot be read" in result.stderr
    result = run(shown, "--few-shot", shown / "fox")
    assert result.exit_code == 2 and "two labels or more" in result.stderr


def test_confusions(run, shown, tmp_path):
    sheet = tmp_path / "confusions.png"
    result = run(shown, "--labels", "fox,owl,gnu", "--confusion", sheet)
    assert result.exit_code == 0 and Image.open(sheet).width > 100
    result = run(shown, "--labels", "fox,owl,gnu", "--confusion", sheet)
    assert result.exit_code == 2 and "is there already" in result.stderr
    result = run(shown, "--labels", "fox,owl", "--confusion", "confusions.jpg")
    assert result.exit_code == 2 and "end 'confusions.jpg' in .png" in result.stderr
    shutil.move(shown / "fox", tmp_path / "moved")
    result = run(tmp_path / "moved", "--labels", "fox,owl", "--confusion", "other.png")
    assert result.exit_code == 2 and "no image is in a folder named" in result.stderr


def test_none_of_these(run, shown):
    """Uncalibrated it is said; calibrated by the images themselves, all of them are named."""
    result = run(shown, "--labels", "fox,owl,gnu", "--none")
    assert result.exit_code == 0 and result.stderr.count("is not calibrated") == 1
    result = run(shown, "--labels", "fox,owl,gnu", "--none", "--calibrate", shown)
    assert result.exit_code == 0 and "6 images are few" in result.stderr
    assert "none of these" not in result.stdout and "not calibrated" not in result.stderr
    result = run(shown, "--labels", "fox,owl,gnu", "--calibrate", shown)
    assert result.exit_code == 2 and "--calibrate needs --none" in result.stderr


def test_heat_maps(run, shown, tmp_path):
    result = run(shown / "fox", "--labels", "fox,owl", "--top", 2, "--explain", tmp_path / "heat")
    assert result.exit_code == 0
    assert len(list((tmp_path / "heat").glob("*.png"))) == 4
    result = run(shown / "fox", "--labels", "fox,owl", "--explain", tmp_path / "heat")
    assert result.exit_code == 2 and "is there already" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There are no labels: give --labels"),
        (["--labels", "fox"], "'fox' as the only label"),
        (["--labels", "fox,fox"], "Labels that repeat: 'fox'"),
        (["--labels", "missing.txt"], "no file of labels missing.txt"),
        (["--labels", "latin.txt"], "is not UTF-8 text (line 1), perhaps latin-1"),
        (["--labels", ""], "A label is empty"),
    ],
)
def test_bad_labels(run, shown, tmp_path, arguments, message):
    (tmp_path / "latin.txt").write_bytes("hérisson\n".encode("latin-1"))
    result = run(shown, *arguments)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


def test_a_broken_picture_is_told_of(run, shown):
    (shown / "fox" / "broken.png").write_bytes(b"\x89PNG")
    result = run(shown, "--labels", "fox,owl,gnu")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 6
    assert "1 of 7 images could not be read" in result.stderr
