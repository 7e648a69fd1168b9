"""benchmarks/canvases.py: each command, small, with a referee of its own."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks import canvas_runs, canvases
from clipguide import load_clip

SMALL = dataclasses.replace(canvases.Drawing(), steps=2, size=(32, 32), cutouts=2)


class Measure:
    """Another CLIP, and prompts without training data."""

    prompts = ("a fox", "an owl", "a red car")

    def __init__(self, folder):
        self.clip = load_clip("mini-judge")
        self.models = {"guide": str(Measure.version), "vqgan": str(Measure.vqgan)}

    version = vqgan = 1

    score = canvas_runs.Measure.score
    models_for = canvas_runs.Measure.models_for

    def top5(self, prompt, picture):
        assert picture.size == (32, 32)
        return prompt == "a fox"


@pytest.fixture
def run(tiny_mini, monkeypatch, tmp_path):
    monkeypatch.setattr(canvases, "Measure", Measure)
    for module in (canvases, canvas_runs):
        monkeypatch.setattr(module, "Drawing", lambda **k: dataclasses.replace(SMALL, **k))
    monkeypatch.setattr(canvases, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(canvases, "OUT", tmp_path / "facts.json")

    def run(*arguments):
        result = CliRunner().invoke(canvases.app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        run.output = result.output
        return json.loads((tmp_path / "facts.json").read_text())

    return run


def test_minute_goes_on_and_makes_a_sheet(run, tmp_path):
    """What was drawn is kept, and drawn anew by other models; time ends a run."""
    line = ("minute", "--prompts", 2, "--canvases", "pixels,vqgan", "--seconds", 1)
    line += ("--sheet", tmp_path / "s.png")
    facts = run(*line)
    for name in ("pixels", "vqgan"):
        assert facts[f"minute {name}"]["top5"] == 0.5 and facts[f"minute {name}"]["prompts"] == 2
    assert facts["minute pixels"]["models"] == {"guide": "1"}
    assert facts["minute vqgan"]["models"] == {"guide": "1", "vqgan": "1"}
    (kept,) = (tmp_path / "cache").glob("*/1/pixels/an owl.png")
    Image.new("RGB", (32, 32), "red").save(kept)
    run(*line)
    assert Image.open(kept).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(tmp_path / "s.png").width >= 4 * canvases.SIDE
    records = (tmp_path / "cache" / "records.jsonl").read_text().splitlines()
    assert len(records) == 4
    for row in map(json.loads, records):
        assert row["took"] < 3 and row["steps"] >= 2


def test_records_are_of_one_version_of_the_models(run, monkeypatch, tmp_path):
    line = ("minute", "--prompts", 1, "--canvases", "pixels", "--seconds", 1)
    line += ("--sheet", tmp_path / "s.png")
    run(*line)
    monkeypatch.setattr(Measure, "version", 2)
    assert run(*line)["minute pixels"]["models"] == {"guide": "2"}
    assert len((tmp_path / "cache" / "records.jsonl").read_text().splitlines()) == 2
    run(*line, "--prompts", 3, "--minutes", 0)  # nothing is begun
    assert len((tmp_path / "cache" / "records.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(Measure, "vqgan", 2)  # which pixels do not need
    run(*line)
    assert len((tmp_path / "cache" / "records.jsonl").read_text().splitlines()) == 2


def test_choose_ranks_ways_on_prompts_of_no_bar(run, monkeypatch):
    monkeypatch.setattr(canvases, "UNUSED", 1)
    monkeypatch.setattr(canvases, "RATES", (1.0, 2.0))
    facts = run("choose", "--prompts", 2, "--canvases", "pixels", "--views", "warped,plain",
                "--seconds", 1)["choose"]  # fmt: skip
    ways = facts["ways"]
    assert set(ways) == {"pixels warped 1.0", "pixels plain 1.0", "pixels warped 2.0"}
    scores = [way["score"] for way in ways.values()]
    assert scores == sorted(scores, reverse=True)
    assert all(way["prompts"] == 2 and way["top5"] == 0.0 for way in ways.values())


@pytest.mark.parametrize(("ours", "reached"), [(0.6, True), (0.4, False)])
def test_race_ends_where_the_score_is_reached(run, monkeypatch, ours, reached):
    scores = iter([0.5, ours, 0.5, ours])  # the classic loop's last, ours after five steps
    monkeypatch.setattr(Measure, "score", lambda self, prompt, image: next(scores))
    line = ("race", "--prompts", 2, "--steps", 5, "--cutouts", 2)
    facts = run(*line)["race pixels"]
    assert facts["median"] > 0 and facts["prompts"] == 2 and facts["reached"] == float(reached)
    assert ("not reached" in run.output) is not reached
    assert run(*line)["race pixels"] == facts  # from the records


def test_longer_compares_what_is_kept_with_step_200(run, monkeypatch, tmp_path):
    """As good counts, and worse does not; a run goes on from the records and draws nothing anew."""
    scores = iter([0.5, 0.6])
    monkeypatch.setattr(Measure, "score", lambda self, prompt, image: next(scores))
    line, records = ("longer", "--prompts", 1, "--steps", 200), tmp_path / "cache/records.jsonl"
    facts = run(*line)["longer pixels"]
    (row,) = map(json.loads, records.read_text().splitlines())
    assert (row["early"], row["late"], facts["at least as good"]) == (0.5, 0.6, 1.0)
    for late, share in ((0.5, 1.0), (0.4, 0.0)):
        records.write_text(json.dumps({**row, "late": late}) + "\n")
        assert run(*line)["longer pixels"]["at least as good"] == share


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
