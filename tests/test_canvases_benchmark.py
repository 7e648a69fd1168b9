"""benchmarks/canvases.py: each command, small, with a referee of its own."""

from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks import canvases
from clipguide import load_clip

SMALL = dataclasses.replace(canvases.Drawing(), steps=2, size=(32, 32), cutouts=2)


class Measure:
    """Another CLIP, and prompts without training data."""

    prompts = ("a fox", "an owl", "a red car")

    def __init__(self, folder):
        self.clip = load_clip("mini-judge")

    score = canvases.Measure.score

    def top5(self, prompt, picture):
        assert picture.size == (32, 32)
        return prompt == "a fox"


@pytest.fixture
def run(tiny_mini, monkeypatch, tmp_path):
    monkeypatch.setattr(canvases, "Measure", Measure)
    monkeypatch.setattr(canvases, "Drawing", lambda **k: dataclasses.replace(SMALL, **k))
    monkeypatch.setattr(canvases, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(canvases, "OUT", tmp_path / "facts.json")

    def run(*arguments):
        result = CliRunner().invoke(canvases.app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "facts.json").read_text())

    return run


def test_draw_goes_on_and_makes_a_sheet(run, tmp_path):
    line = ("draw", "--prompts", 2, "--canvases", "pixels,vqgan", "--sheet", tmp_path / "s.png")
    facts = run(*line)
    assert facts["draw pixels"]["top5"] == facts["draw vqgan"]["top5"] == 0.5
    kept = tmp_path / "cache" / "pixels" / "an owl.png"
    Image.new("RGB", (32, 32), "red").save(kept)
    run(*line)
    assert Image.open(kept).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(tmp_path / "s.png").width >= 4 * canvases.SIDE


def test_race(run):
    facts = run("race", "--prompts", 2, "--steps", 2, "--cutouts", 2)["race"]
    assert facts["median"] > 0 and (facts["prompts"], facts["steps"]) == (2, 2)


def test_longer(run):
    facts = run("longer", "--prompts", 1, "--steps", 200)["longer"]
    assert facts["at least as good"] in (0.0, 1.0)


def test_tile(run):
    facts = run("tile", "--prompts", 1, "--steps", 2)["tile"]
    assert facts["tile"] > 0 and facts["none"] > 0
