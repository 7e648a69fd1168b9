"""The method auto: what it chooses from, how it chooses, and that what it chose is what is run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from clipguide.pipelines.text_to_image import TextToImage
from test_guidance import draw, use
from typer.testing import CliRunner

from clipguide.cli.app import app
from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import BestOf, Drafts, Particles, Shortcut, auto, steer
from clipguide.objectives import Similarity
from clipguide.recipe import read_png
from clipguide.views import Cutouts

ROWS = [
    {"strength": 0.0, "best_of": 1, "cost": 1.0, "gain": 0.0, "decoder": "vae", "cutouts": 0},
    {"strength": 0.3, "best_of": 1, "cost": 1.5, "gain": 1.0, "decoder": "linear", "cutouts": 0},
    {"strength": 0.3, "best_of": 2, "cost": 3.0, "gain": 2.0, "decoder": "vae", "cutouts": 2},
]
OWN = [  # those that hold for the embedded generator alone
    {"method": "shortcut", "options": {"strength": 0.0}, "best_of": 2, "steps": 2, "cost": 0.9,
     "gain": 0.5, "decoder": "vae", "cutouts": 4},
    {"method": "drafts", "options": {"number": 2, "draft_steps": 2}, "best_of": 1, "steps": 3,
     "cost": 4.0, "gain": 3.0, "decoder": "vae", "cutouts": 4},
]  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    rows = [
        {**row, "method": "shortcut", "options": {"strength": row["strength"]}, "steps": None}
        for row in ROWS
    ]
    for row in rows:
        del row["strength"]
    monkeypatch.setattr(auto, "_rows", lambda: [*rows, *OWN])


def test_the_table_that_is_shipped():
    """Each row can be made, and is chosen at its cost. Plain sampling is the first that any
    pipeline has; for the embedded generator, there is more to choose from."""
    every = json.loads(auto.TABLE.read_text())["rows"]
    assert len(every) > 4
    anywhere, of_mini = (
        [auto.choose(max(row["cost"], 1.0), own=own) for row in every] for own in (False, True)
    )
    chosen = {choice.cost for choice in (*anywhere, *of_mini)}
    assert chosen == {row["cost"] for row in every}  # none is there for nothing
    assert (anywhere[0].cost, anywhere[0].best_of) == (1.0, 1) and anywhere[0].each.idle
    assert all(choice.steps is None for choice in anywhere)
    assert any(choice.steps for choice in of_mini)


@pytest.mark.parametrize(("budget", "row"), [(1, 0), (1.4, 0), (1.5, 1), (2.9, 1), (3, 2), (9, 2)])
def test_choice(table, budget, row):
    choice = auto.choose(budget)
    assert choice.each == Shortcut(strength=ROWS[row]["strength"])
    assert (choice.best_of, choice.cost) == (ROWS[row]["best_of"], ROWS[row]["cost"])


@pytest.mark.parametrize(
    ("budget", "chosen"), [(1, (0.9, 2)), (1.5, (1.5, None)), (3.9, (3.0, None)), (4, (4.0, 3))]
)
def test_choice_for_the_embedded_generator(table, budget, chosen):
    """Rows of fewer steps and of drafts count too."""
    choice = auto.choose(budget, own=True)
    assert (choice.cost, choice.steps) == chosen
    assert (", 2 steps;" in str(choice)) == (chosen[1] == 2)


@pytest.mark.parametrize("budget", [0.99, 0, -1, float("nan"), float("inf")])
def test_budget_below_1(table, pipe, clip, budget):
    with pytest.raises(UsageError, match="at least 1"):
        steer(pipe, "a fox", clip=clip, method="auto", budget=budget)


def test_seconds():
    assert auto.times_plain("6s", lambda: 2.0) == 3.0
    assert auto.times_plain("2.5", None) == auto.times_plain(2.5, None) == 2.5
    with pytest.raises(UsageError, match="2.0 s here"):
        auto.times_plain("1s", lambda: 2.0)
    with pytest.raises(UsageError, match="seconds"):
        auto.times_plain("soon", None)


def test_steer_runs_what_it_chose(table, pipe, clip):
    use(pipe, "DDIM")
    with steer(pipe, "a fox", clip=clip, method="auto", budget=2) as s:
        chosen = draw(pipe)
        assert "linear" in s.report.choice and "strength 0.3" in s.report.choice
    objective = Similarity(clip, "a fox", views=Cutouts(number=0))
    with steer(pipe, objective, strength=0.3, decoder="linear"):
        assert torch.equal(draw(pipe), chosen)


def test_best_of_a_method(table, pipe, clip):
    """The better of two steered samples, each as it is drawn alone."""
    use(pipe, "DDIM")
    with steer(pipe, "a fox", clip=clip, method="auto", budget=4) as s:
        with pytest.raises(ClipguideError, match="call s"):
            draw(pipe)
        chosen = draw(s)
        scores = torch.stack(s.report.candidates)
    objective = Similarity(clip, "a fox", views=Cutouts(number=2))
    with steer(pipe, objective, strength=0.3):
        each = [draw(pipe, seeds=(3 + k * 1_000_000, 4 + k * 1_000_000)) for k in (0, 1)]
    for i, k in enumerate(scores.argmax(0).tolist()):
        assert torch.equal(chosen[i], each[k][i])
    assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize("each", [Shortcut(travel=2), BestOf()])
def test_what_cannot_be_each_of_best_of(each):
    with pytest.raises(UsageError, match="each of best-of"):
        BestOf(each=each)


def test_each_is_checked_with_the_sampler(pipe, clip):
    use(pipe, "UniPC")
    with pytest.raises(ClipguideError, match="neither stochastic"):
        steer(pipe, "a fox", clip=clip, method=BestOf(each=Particles())).attach()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "auto", "strength": 0.1}, "strength"),
        ({"budget": 3, "decoder": "vae"}, "auto"),
    ],
)
def test_what_does_not_go_together(pipe, clip, settings, message):
    with pytest.raises(UsageError, match=message):
        steer(pipe, "a fox", clip=clip, **settings)


def test_text_to_image(table, tiny_mini):
    """The recipe says what was chosen, and makes the image again; by hand it is the same."""
    model = TextToImage()
    (picture,) = model("a fox", method="auto", budget=3, steps=3, seed=2)
    recipe = picture.recipe
    assert (recipe.method, recipe.strength, recipe.best_of) == ("shortcut", 0.3, 2)
    assert (recipe.cutouts, recipe.decoder) == (2, "vae:whole")
    assert model.choice.cost == 3.0
    (by_hand,) = model("a fox", strength=0.3, best_of=2, cutouts=2, steps=3, seed=2)
    for other in (by_hand, model.replay(recipe)):
        assert np.array_equal(np.asarray(other.image), np.asarray(picture.image))
    (other,) = model("a fox", strength=0.3, best_of=2, cutouts=3, steps=3, seed=2)
    assert not np.array_equal(np.asarray(other.image), np.asarray(picture.image))
    (quick,) = model("a fox", method="auto", budget="1000s", steps=2)
    assert quick.recipe.best_of == 2


def test_text_to_image_chooses_the_steps(table, tiny_mini, monkeypatch):
    """If none are given, for a generator with defaults of its own: best-of of two steps, which
    guide and judge select, and drafts."""
    model = TextToImage()
    monkeypatch.setattr(type(model.pipe), "default_best_of", 4, raising=False)
    for budget, by_hand in (
        (1, {"best_of": 2, "steps": 2}),
        (4, {"method": Drafts(number=2, draft_steps=2), "steps": 3}),
    ):
        (chosen,) = model("a fox", method="auto", budget=budget, seed=5)
        (other,) = model("a fox", seed=5, **by_hand)
        assert chosen.recipe.steps == by_hand["steps"]
        assert chosen.recipe.cutouts == other.recipe.cutouts == 4
        assert np.array_equal(np.asarray(chosen.image), np.asarray(other.image))
    (given,) = model("a fox", method="auto", budget=4, steps=2, seed=5)
    assert (given.recipe.method, given.recipe.steps) == ("shortcut", 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "auto", "cutouts": 3}, "cutouts"),
        ({"method": "auto", "best_of": 2}, "best_of"),
        ({"method": "auto", "budget": "0.000001s"}, "without any steering"),
        ({"budget": 3, "decoder": "linear"}, "auto"),
        ({"cutouts": -1}, "cutouts"),
        ({"cutouts": 1000}, "cutouts"),
    ],
)
def test_text_to_image_refuses(table, tiny_mini, settings, message):
    with pytest.raises(UsageError, match=message):
        TextToImage().iterate("a fox", steps=2, **settings)


def test_command(table, tiny_mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "fox", "--steps", "2", "--method", "auto", "--compare", "-n", "2"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "2", "--out", "out"])
    assert result.exit_code == 0, result.output
    assert "strength 0.3" in result.output
    assert {read_png(path).decoder for path in tmp_path.glob("out/fox-[0-9]*[0-9].png")} == {
        "linear"
    }
    assert CliRunner().invoke(app, [*arguments, "--budget", "0.5"]).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--strength", "1"]).exit_code == 2
