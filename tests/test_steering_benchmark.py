"""benchmarks/steering.py: its sums by hand, every way on a tiny generator, and the baseline."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from clipguide.pipelines.text_to_image import TextToImage
from test_guidance import use
from typer.testing import CliRunner

from benchmarks import community, steering
from benchmarks.steering import PLAIN, WAYS, Drawn, Row, Way
from clipguide.guidance import METHODS, Shortcut
from clipguide.guidance.methods import configure

pytestmark = pytest.mark.filterwarnings("ignore")


def drawn(prompt, way, seed, *, seconds=1.0, score=0.0, top5=False, guide=0.0):
    return Drawn(prompt, way, seed, seconds, score, top5, guide)


@pytest.fixture
def ways(monkeypatch):
    ways = (Way("plain", None, 4, (1, 2)), Way("a", Shortcut(strength=0.3), 2, (1,)))
    monkeypatch.setattr(steering, "WAYS", ways)
    monkeypatch.setattr(steering, "PLAIN", ways[0])


PICTURES = [
    *(drawn(0, "plain", s, score=s / 10, guide=-s, top5=s == 0) for s in range(4)),
    *(drawn(1, "plain", s, score=0.2, seconds=2.0, guide=s) for s in range(4)),
    *(drawn(0, "a", s, score=0.35, seconds=3.0, top5=True) for s in range(2)),
    *(drawn(1, "a", s, score=0.1 - s / 100, seconds=10.0) for s in range(2)),
]


def test_rows(ways):
    """Prompt 0: plain scores 0, .1, .2, .3, liked best are 0 and 2; prompt 1: always .2."""
    plain, best, a = steering.rows(PICTURES)
    assert (plain.cost, plain.score, plain.gain) == (1.0, pytest.approx(0.175), 0.0)
    assert plain.top5 == 1 / 8
    assert (best.way, best.best_of, best.cost) == ("plain", 2, 2.0)
    assert best.gain == pytest.approx(((0.0 + 0.2) / 2 - 0.15 + 0) / 2)
    assert a.cost == pytest.approx(4.0)  # the median of 3, 3, 5, 5
    gains = (0.35 - (0.0 + 0.1) / 2, 0.095 - 0.2)  # of the same seeds
    assert a.gain == pytest.approx(sum(gains) / 2)
    assert a.error == pytest.approx(abs(gains[0] - gains[1]) / 2)  # of two: half their distance
    assert (a.method, a.options, a.top5) == ("shortcut", {"strength": 0.3}, 0.5)


def test_worse(ways):
    """Prompt 0 gains .35 and .25; prompt 1 loses .1 and .11, at two standard errors of .01."""
    assert steering.worse(PICTURES, "a") == (0.5, 0.5, 2)
    assert steering.worse(PICTURES, "plain") == (0.0, 0.0, 4)


def row(cost, gain, **facts):
    return Row("", 1, cost, 0, gain, 0, 0, 0, **facts)


def test_frontier():
    plain, poor, good = row(1, 0), row(2, -1), row(3, 2)
    other, late = row(2, 9, method="particles"), row(4, 1.5)
    assert steering.frontier([late, other, good, poor, plain]) == [plain, good]


def test_every_way_draws(tiny_mini, monkeypatch):
    """Each its own image, the same twice, and what is kept makes the method again."""
    monkeypatch.setattr(steering, "STEPS", 4)
    model, found = TextToImage(), {}
    for way in WAYS:
        found[way.name] = steering.draw(model, way, "a fox", 1)
        assert found[way.name].shape == (1, 3, 32, 32)
        assert torch.equal(found[way.name], steering.draw(model, way, "a fox", 1))
        facts = steering.settings(way)
        if facts.get("method") in METHODS:
            assert configure(facts["method"], facts["options"]) == way.method
    unjudged = [way.name for way in WAYS if not way.judged]  # a judge need not step in
    for one, other in itertools.combinations(unjudged, 2):
        assert not torch.equal(found[one], found[other]), (one, other)


def test_table(tmp_path, ways, monkeypatch):
    """From records to a table, a plot, and what auto chooses from."""
    monkeypatch.setattr(steering, "TABLE", tmp_path / "auto.json")
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(vars(d)) + "\n" for d in PICTURES))
    command = ["table", "--records", records, "--out", tmp_path / "out.json", "--auto"]
    result = CliRunner().invoke(steering.app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert "| a | 4.00 | +97.5 ± 202.5 | 50.0% |" in result.output
    assert "worse on 50.0% of the 2 prompts" not in result.output  # of the default strength alone
    assert json.loads((tmp_path / "out.json").read_text())["prompts"] == 2
    rows = json.loads((tmp_path / "auto.json").read_text())["rows"]
    assert [row["gain"] for row in rows] == [0.0, 0.0975]
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_the_baseline_is_guided(pipe, clip):
    """At a scale of 0 it is plain sampling; its loss falls with the scale."""
    use(pipe, "DDIM", "epsilon")

    def sample(scale):
        torch.manual_seed(0)
        generator = [torch.Generator().manual_seed(1)]
        settings = {"steps": 10, "cfg": 3.0, "number": 2, "generator": generator}
        latents = community.sample(pipe, clip, ["a fox"], scale=scale, **settings)
        with torch.no_grad():
            image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1)

    generator = [torch.Generator().manual_seed(1)]
    plain = pipe(["a fox"], 32, 32, 10, guidance_scale=3.0, generator=generator, output_type="pt")
    torch.testing.assert_close(sample(0.0), plain.images, atol=1e-5, rtol=0)
    text = clip.encode_text(["a fox"])
    cosine = [(clip.encode_image(sample(scale)) @ text.T).item() for scale in (0.0, 50.0)]
    assert cosine[1] > cosine[0]


def test_plain_is_first():
    assert WAYS[0] is PLAIN and PLAIN.seeds >= 8
