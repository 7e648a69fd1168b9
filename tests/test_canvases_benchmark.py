"""benchmarks/canvases.py: each command, small, with a referee of its own."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
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
        run.output = result.output
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


@pytest.mark.parametrize(("ours", "reached"), [(0.6, True), (0.4, False)])
def test_race_ends_where_the_score_is_reached(run, monkeypatch, ours, reached):
    scores = iter([0.5, ours, 0.5, ours])  # the classic loop's last, ours after five steps
    monkeypatch.setattr(Measure, "score", lambda self, prompt, image: next(scores))
    facts = run("race", "--prompts", 2, "--steps", 5, "--cutouts", 2)
    assert facts["race"]["median"] > 0 and facts["race"]["prompts"] == 2
    assert ("not reached" in run.output) is not reached


@pytest.mark.parametrize(("late", "share"), [(0.6, 1.0), (0.5, 1.0), (0.4, 0.0)])
def test_longer_compares_what_is_kept_with_step_200(run, monkeypatch, late, share):
    scores = iter([0.5, late])
    monkeypatch.setattr(Measure, "score", lambda self, prompt, image: next(scores))
    assert run("longer", "--prompts", 1, "--steps", 200)["longer"]["at least as good"] == share


def test_tile_measures_the_seam(run, monkeypatch):
    """A ramp has 15 of its steps across the seam; a checkerboard is the same everywhere."""
    rows, columns = np.mgrid[:16, :16]
    ramp, board = 8 * (rows + columns), 16 * ((rows + columns) % 2)

    class Owner:
        def __init__(self, canvas, judge):
            pass

        def __call__(self, prompt, drawing, seed):
            values = board if drawing.tile else ramp
            rgb = np.repeat(values[..., None], 3, -1).astype(np.uint8)
            return [SimpleNamespace(image=Image.fromarray(rgb))]

    monkeypatch.setattr(canvases, "TextToCanvas", Owner)
    facts = run("tile", "--prompts", 1, "--steps", 2)["tile"]
    assert facts["tile"] == pytest.approx(1) and facts["none"] == pytest.approx(15)
