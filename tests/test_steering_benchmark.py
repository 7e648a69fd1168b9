"""benchmarks/steering.py: its sums by hand, every way on a tiny generator, and the baseline."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace

import pytest
import tiny_pipelines
import torch
from clipguide.pipelines.text_to_image import TextToImage
from test_guidance import use
from typer.testing import CliRunner

from benchmarks import community, gains, steering
from benchmarks import ways as table_of_ways
from benchmarks.gains import Drawn, Row
from benchmarks.ways import DEFAULT, PLAIN, STEPS, WAYS, Way
from clipguide import load_clip, mini
from clipguide.guidance import METHODS, BestOf, Particles, Shortcut
from clipguide.guidance.methods import configure
from clipguide.images import to_tensor

pytestmark = pytest.mark.filterwarnings("ignore")


def drawn(
    prompt, way, seed, *, seconds=1.0, score=0.0, top5=False, guide=0.0, judge=0.0, spread=0.0
):
    return Drawn(prompt, way, seed, seconds, score, top5, guide, judge, spread)


@pytest.fixture
def ways(monkeypatch):
    ways = (
        Way("plain", None, 4, (1, 2)),
        Way("a", Shortcut(strength=0.4), 2, (1,)),
        Way("b", Particles(number=2), 2, (1,)),
    )
    monkeypatch.setattr(table_of_ways, "WAYS", ways)
    monkeypatch.setattr(gains, "PLAIN", ways[0])


PICTURES = [
    *(drawn(0, "plain", s, score=s / 10, guide=s, judge=-2 * s, top5=s == 0) for s in range(4)),
    *(drawn(1, "plain", s, score=0.2, seconds=2.0, guide=s) for s in range(4)),
    *(drawn(0, "a", s, score=0.35, seconds=3.0, top5=True, spread=0.1) for s in range(2)),
    *(drawn(1, "a", s, score=0.1 - s / 100, seconds=10.0, spread=0.3) for s in range(2)),
]


def test_rows(ways):
    """Prompt 0: plain scores 0, .1, .2, .3; of each two, guide and judge like the first best, and
    the guide alone the second; prompt 1: always .2. Way a gains .35 and .25 on prompt 0; on prompt
    1 it loses .1 and .11, at two standard errors of .01."""
    plain, best, a = gains.rows(PICTURES)
    assert (plain.cost, plain.score, plain.gain) == (1.0, pytest.approx(0.175), 0.0)
    assert plain.top5 == 1 / 8 and (plain.better, plain.worse, plain.prompts) == (0.0, 0.0, 2)
    assert (best.way, best.best_of, best.cost) == ("plain", 2, 2.0)
    assert best.gain == pytest.approx(((0.0 + 0.2) / 2 - 0.15 + 0) / 2)
    assert a.cost == pytest.approx(4.0)  # the median of 3 and 5
    of_prompts = (0.35 - (0.0 + 0.1) / 2, 0.095 - 0.2)  # of the same seeds
    assert a.gain == pytest.approx(sum(of_prompts) / 2)
    assert a.error == pytest.approx(abs(of_prompts[0] - of_prompts[1]) / 2)  # half their distance
    assert (a.method, a.options, a.top5) == ("shortcut", {"strength": 0.4}, 0.5)
    assert (a.better, a.worse, a.spread) == (0.5, 0.5, pytest.approx(0.2))


def test_gains_by_class(ways):
    """Of test_rows' sums: way a gains 0.3 on prompt 0 and loses 0.105 on prompt 1."""
    a = gains.rows(PICTURES)[-1]
    found = gains.of_classes(PICTURES, a, {0: "animals", 1: "food"})
    assert [*found] == ["animals", "food"]
    assert found["animals"] == {"prompts": 1, "gain": pytest.approx(0.3), "error": None}
    assert found["food"]["gain"] == pytest.approx(-0.105)
    (both,) = gains.of_classes(PICTURES, a, {0: "food", 1: "food"}).values()
    assert both == {"prompts": 2, "gain": a.gain, "error": a.error}
    plain, best = gains.rows(PICTURES)[:2]
    assert gains.of_classes(PICTURES, best, {0: "food", 1: "food"})["food"]["gain"] == best.gain
    assert steering.default_of([plain, best]) is plain
    dear, fits = (replace(a, gain=9.0, cost=cost) for cost in (4.2, 4.0))
    assert steering.best_at_four([plain, best, dear]) is plain  # the best of two loses
    assert steering.best_at_four([plain, best, fits]) is fits


def test_autos_table_has_a_cost_once(ways, monkeypatch, tmp_path):
    """Of equal costs, the row that gains most is kept."""
    monkeypatch.setattr(steering, "TABLE", tmp_path / "auto.json")
    a = gains.rows(PICTURES)[-1]
    costs = ((1, 0), (2.004, 0.2), (2.004, 0.1))
    found = [replace(a, cost=cost, gain=gain) for cost, gain in costs]
    steering.write_auto(found, {}, 2)
    rows = json.loads((tmp_path / "auto.json").read_text())["rows"]
    assert [(row["cost"], row["gain"]) for row in rows] == [(1, 0), (2.0, 0.2)]
    assert rows[0]["steps"] is None


def test_a_loss_within_two_standard_errors_is_not_clear(ways):
    found = [*(drawn(0, "plain", s, score=0.5) for s in range(2)),
             drawn(0, "a", 0, score=0.3), drawn(0, "a", 1, score=0.5)]  # fmt: skip
    assert gains.rows(found)[-1].worse == 0.0
    assert gains.rows(found)[-1].better == 0.0


def test_a_group_is_paired_with_its_own_seeds(ways):
    """Of three images one group of two is whole: the third seed has no part in the gain."""
    found = [drawn(0, "plain", s, score=(0.0, 0.2, 9.0)[s], guide=s) for s in range(3)]
    best = gains.rows(found)[1]
    assert best.gain == pytest.approx(0.2 - 0.1)


def row(cost, gain, **facts):
    return Row("", 1, 1, cost, 0, gain, 0, 0, 0, 0, 0, 0, **facts)


def test_frontier():
    """Anywhere, without the row of fewer steps and the drafts."""
    plain, poor, good = row(1, 0), row(2, -1), row(3, 2)
    other, late = row(2, 9, method="particles"), row(4, 1.5)
    fewer, drafts = row(0.5, 0.1, steps=15), row(5, 3, method="drafts", steps=15)
    every = [late, other, drafts, good, poor, fewer, plain]
    assert gains.frontier(every, own=False) == [plain, good]
    assert gains.frontier(every, own=True) == [fewer, good, drafts]


def test_a_way_of_few_prompts_is_left_out(ways):
    some = [one for one in PICTURES if one.way != "a" or one.prompt == 0]
    more = [drawn(prompt, "plain", 0) for prompt in (2, 3)]
    assert gains.enough(some) == some  # one of two
    assert {one.way for one in gains.enough(some + more)} == {"plain"}


def test_ways_of_fewer_prompts_are_shown_on_their_own(ways):
    """Plain sampling has twenty prompts; `a` has nine of them, `c` eight of these, which do not
    hide the ninth, and `b` seven, too few to count."""
    plain = [drawn(p, "plain", s) for p in range(20) for s in range(2)]
    a = [drawn(p, "a", 0, score=0.1) for p in range(2, 11)]
    c = [drawn(p, "c", 0) for p in range(2, 10)]
    b = [drawn(p, "b", 0) for p in range(7)]
    assert {d.way for d in gains.enough(plain + a + b + c)} == {"plain"}
    fewer = gains.of_fewer(plain + c + a + b)
    assert {d.way for d in fewer} == {"plain", "a"}
    assert {d.prompt for d in fewer} == set(range(2, 11))
    assert gains.of_fewer(plain) == [] and gains.of_fewer(plain + b) == []


def test_another_program_is_beside_the_best_of_ours_at_its_cost(ways, monkeypatch):
    """The even half prefers `a`, the odd half `b`, so that each half is measured by what the other
    prefers: `a` gains .1 on odd prompts, and `b` .2 on even ones. `c` gains more, and costs more
    than the other program. Its eight prompts are the first of sixteen."""
    peer = Way("community 1", 1.0, 2, (1,))
    more = Way("c", Particles(number=4), 2, (1,))
    monkeypatch.setattr(table_of_ways, "WAYS", (*table_of_ways.WAYS, more, peer))
    found = []
    for p in range(16):
        odd = p % 2
        said = {"plain": (1.0, 0.0), "a": (2.0, 0.1 if odd else 0.5), "c": (9.0, 5.0)}
        said |= {"b": (3.0, 0.6 if odd else 0.2), "community 1": (4.0, 0.3 if odd else 0.1)}
        for way, (seconds, score) in said.items():
            if way != "community 1" or p < 8:
                found += [drawn(p, way, s, seconds=seconds, score=score) for s in range(2)]
    (pair,) = gains.versus(found)
    assert (pair.peer, pair.ours, pair.prompts) == ("community 1", ["a", "b"], 8)
    assert (pair.peer_cost, pair.cost) == (4.0, 2.5)
    assert pair.peer_gain == pytest.approx(0.2) and pair.gain == pytest.approx(0.15)
    assert pair.error == pytest.approx(0.05 / 7**0.5)
    seven = [one for one in found if (one.prompt, one.way) != (0, "community 1")]
    assert gains.versus(seven) == []  # too few prompts


def test_what_a_budget_buys_is_chosen_on_other_prompts_than_it_is_shown_on(ways):
    """Prompts 5 and 7 choose, 6 and 8 show: way a is best by the first, and worse by the second;
    b, which would be better there, costs too much."""
    found = []
    for place, prompt in enumerate((5, 6, 7, 8)):
        found += [drawn(prompt, "plain", s, score=0.2) for s in range(4)]
        score = 0.5 if place % 2 == 0 else 0.1
        found += [drawn(prompt, "a", s, score=score, seconds=1.5) for s in range(2)]
        found += [drawn(prompt, "b", s, score=0.9, seconds=3.0) for s in range(2)]
    budgets = gains.at_budgets(found)
    assert [r.way for r in budgets[1.25]] == ["plain"]
    assert [r.way for r in budgets[1.5]] == ["a", "plain"]
    assert budgets[1.5][0].gain == pytest.approx(-0.1) and budgets[1.5][0].prompts == 2
    assert [r.kind for r in budgets[4.0]] == ["particles", "shortcut", "plain", "best-of"]


@pytest.mark.slow
def test_every_way_draws(tiny_mini):
    """Each its own image, the same twice, and what is kept makes the method again."""
    model, found = TextToImage(), {}
    for way in WAYS:
        # 8 steps, so that every sixth is not the first alone
        steps = 8 if way.steps == STEPS else way.steps // 2
        quick = replace(way, steps=steps)
        found[way.name] = table_of_ways.draw(model, quick, "a fox", 1)
        assert found[way.name].shape == (1, 3, 32, 32)
        assert torch.equal(found[way.name], table_of_ways.draw(model, quick, "a fox", 1))
        facts = table_of_ways.settings(way)
        assert facts["steps"] == way.steps
        if facts.get("method") in METHODS:
            assert configure(facts["method"], facts["options"]) == way.method
    assert (DEFAULT.candidates, DEFAULT.steps) == (mini.CANDIDATES, mini.STEPS)
    (usual,) = model("a fox", seed=1, steps=mini.STEPS // 2, best_of=mini.CANDIDATES, strength=0)
    assert torch.equal(found[DEFAULT.name], to_tensor([usual.image]))
    # A judge need not step in, and of several unsteered images the first may be the best.
    sure = [
        way.name
        for way in WAYS
        if not (way.judged or way.candidates > 1 or isinstance(way.method, BestOf))
    ]
    for one, other in itertools.combinations(sure, 2):
        assert not torch.equal(found[one], found[other]), (one, other)


MODELS = {"guide": "1" * 12, "referee": "2" * 12}


def test_table(tmp_path, ways, monkeypatch):
    """From records to tables, a plot, and what auto chooses from; what other models drew is left
    out, and without anything of these it says so."""
    monkeypatch.setattr(steering, "TABLE", tmp_path / "auto.json")
    monkeypatch.setattr(steering, "models_of", lambda *shipped, referee: MODELS)
    monkeypatch.setattr(steering, "classes", lambda: {0: "animals", 1: "food"})
    records, mark = tmp_path / "records.jsonl", steering.digest_of(MODELS)
    lines = [{**vars(d), "models": mark} for d in PICTURES]
    lines += [{**vars(drawn(2, "a", 0, score=9.0)), "models": "others"}]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["table", "--records", records, "--out", tmp_path / "out.json", "--auto"]
    result = CliRunner().invoke(steering.app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert "| a | 4.00 | +97.5 ± 202.5 | 50.0% | 50% | 50.0% | 0.200 |" in result.output
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["prompts"] == 2 and kept["models"] == MODELS and set(kept["budgets"]) == {
        "1.25", "1.5", "2", "4", "8"
    }  # fmt: skip
    gains_of = {name: one["gain"] for name, one in kept["classes"]["a"].items()}
    assert gains_of == {"animals": pytest.approx(0.3), "food": pytest.approx(-0.105)}
    table = json.loads((tmp_path / "auto.json").read_text())
    assert [row["gain"] for row in table["rows"]] == [0.0, 0.0975] and table["models"] == MODELS
    assert (tmp_path / "out.png").stat().st_size > 1000
    records.write_text(json.dumps(lines[-1]) + "\n")
    assert CliRunner().invoke(steering.app, [str(part) for part in command]).exit_code == 2


def test_images_of_a_way_are_graded(tiny_mini):
    """By a referee of two things: cosine, rank, and how far the seeds are apart."""
    model, referee, plain = TextToImage(), load_clip("mini-judge"), replace(PLAIN, steps=2)
    text_KD = referee.encode_text([f"thing {k}" for k in range(6)] + ["a fox"])
    found = steering.graded(model, referee, text_KD, plain, "a fox", 6, 3)
    images = torch.cat([table_of_ways.draw(model, plain, "a fox", seed) for seed in range(3)])
    unit_BD = torch.cat([referee.encode_image(image[None]) for image in images])
    for k, one in enumerate(found):
        cosine = unit_BD @ unit_BD[k]
        others = cosine[[j for j in range(3) if j != k]].mean()
        assert one.spread == pytest.approx(float(1 - others), abs=2e-5)
        assert one.score == pytest.approx(float(unit_BD[k] @ text_KD[6]), abs=2e-5)
        for clip, value in ((model.judge, one.judge), (model.clip, one.guide)):
            expected = clip.encode_image(images[k][None])[0] @ clip.encode_text(["a fox"])[0]
            assert value == pytest.approx(float(expected), abs=2e-5)
        assert one.top5 == bool(((unit_BD[k] @ text_KD.T) > unit_BD[k] @ text_KD[6]).sum() < 5)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "MiniPipeline"])
def test_the_baseline_is_guided(kind, pipe, clip):
    """At a scale of 0 it is plain sampling; its loss falls with the scale."""
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0}
    if kind == "MiniPipeline":
        pipe, given = tiny_pipelines.tiny("mini")
        settings |= {"maps": given["maps"][:1]}
        decode = pipe.decode
    else:
        use(pipe, "DDIM", "epsilon")
        settings |= {"height": 32, "width": 32}

        def decode(latents):
            return pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample

    def image(latents):
        with torch.no_grad():
            return (decode(latents) / 2 + 0.5).clamp(0, 1)

    def sample(scale):
        torch.manual_seed(0)
        given = {**settings, "generator": [torch.Generator().manual_seed(1)], "number": 2}
        told_first = kind == "MiniPipeline"
        return image(
            community.sample(pipe, clip, ["a fox"], scale=scale, told_first=told_first, **given)
        )

    generator = [torch.Generator().manual_seed(1)]
    plain = pipe(["a fox"], generator=generator, output_type="latent", **settings).images
    asked = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda unet, args, kwargs: asked.append((args[0], kwargs)), with_kwargs=True
    )
    torch.testing.assert_close(sample(0.0), image(plain), atol=1e-5, rtol=0)
    hook.remove()
    (both, told), (one, again) = asked[:2]  # the second pass is that of the conditioned half
    half = slice(None, 1) if kind == "MiniPipeline" else slice(1, None)
    assert len(both) == 2 and torch.equal(one, both[half])
    states = "encoder_hidden_states"
    assert torch.equal(again[states], told[states][half])
    assert not torch.equal(told[states][0], told[states][1])
    text = clip.encode_text(["a fox"])
    cosine = [(clip.encode_image(sample(scale)) @ text.T).item() for scale in (0.0, 50.0)]
    assert cosine[1] > cosine[0]


def test_plain_is_first():
    assert WAYS[0] is PLAIN and PLAIN.seeds >= 8


def test_auto_against_the_best(ways):
    """On the even prompts "a" of shortcut gains 1 and "b", which auto does not know, 2; on the odd
    ones these gain 0.3 and 0.5. Plain sampling fits every budget, and gains nothing."""
    found = []
    for prompt in range(4):
        a, b = ((1.0, 2.0), (0.3, 0.5))[prompt % 2]
        found += [drawn(prompt, "plain", s) for s in range(2)]
        found += [drawn(prompt, "a", s, seconds=2.0, score=a) for s in range(2)]
        found += [drawn(prompt, "b", s, seconds=4.0, score=b) for s in range(2)]
    ratios = gains.of_auto(found)
    assert ratios[2.0] == ("a", 1.0)  # "b" is too expensive
    assert ratios[4.0] == ratios[8.0] == ("a", pytest.approx(0.6))
    assert 1.25 not in ratios and 1.5 not in ratios


def test_what_the_judge_catches():
    """The even prompt has twenty sound images, of which the judge's score falls by 0.00 to 0.19:
    at a threshold of 0.18 it is wrong about one of them. On the odd prompt it catches the larger
    fall of the two fooled images, and none of the sound one. An image that the guide likes less
    does not count."""
    found = [drawn(p, "plain", s, guide=0.1, judge=0.5) for p in range(2) for s in range(21)]
    up = {"guide": 0.2, "score": 0.1}
    found += [drawn(0, "a", s, judge=0.5 - s / 100, **up) for s in range(20)]
    found += [drawn(0, "a", 20, guide=0.2, score=-0.1, judge=0.5)]
    found += [drawn(1, "a", s, guide=0.2, score=-0.1, judge=0.5 - s) for s in range(2)]
    found += [drawn(1, "a", 2, judge=0.4, **up)]
    found += [drawn(1, "a", 3, guide=0.05, score=-0.1, judge=-1.0)]
    seen = gains.caught(found)
    assert (seen.fooled, seen.sound, seen.caught, seen.false) == (2, 1, 0.5, 0.0)
    assert seen.threshold == pytest.approx(0.18)
    assert gains.caught(found[:-4]) is None


def test_auto_does_not_choose_the_judge():
    way = Way("a", Shortcut(strength=0.4), judged=True)
    facts = table_of_ways.settings(way)
    assert facts["method"] == "shortcut, judged"
    row = Row("a", 1, 2, 3.0, 0.2, 0.1, 0.0, 0.5, 1.0, 0.0, 0.2, 0.2, **facts)
    assert not gains.frontier([row], own=True)
    assert gains.frontier([replace(row, method="shortcut")], own=True)


def test_an_image_that_two_processes_drew_counts_once(tmp_path):
    lines = [json.dumps(asdict(drawn(0, "plain", seed, score=0.1))) for seed in (0, 0, 1)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    assert [one.seed for one in steering.read(tmp_path / "records.jsonl")] == [0, 1]
