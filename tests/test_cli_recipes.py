"""`generate --config`: a recipe draws its image again, and says what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipguide import recipe as recipes
from clipguide.cli.app import app
from clipguide.cli.recipes import _candidates

FAST = ("--steps", "2")
run = CliRunner()


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(tmp_path / "none"))


def generate(*words, code=0):
    done = run.invoke(app, ["generate", *map(str, words)])
    assert code is None or done.exit_code == code, done.output
    return done


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def written(name: str, **fields) -> str:
    Path(name).write_text(json.dumps(fields), "utf-8")
    return name


MANY = (
    *("--clip-prompt", "a fox", "--negative", "blur", "--cfg", 2.5, "--cfg-window", "0.2,0.9"),
    *("--size", "32x48", "--clip", "mini-judge", "--judge", "mini", "--decoder", "linear"),
    *("--window", "0.2,0.9", "--every", 2, "--strength", "0.1@0..0.5", "--cutouts", 2),
)


@pytest.mark.parametrize(
    "words",
    [
        (),
        MANY,
        ("--best-of", 3),
        ("--method", "particles", "--number", 2, "--every", 1, "--count", 2),
        ("--method", "lookahead", "--number", 2, "--lookahead-steps", 2),
        ("--reward", "clip=mini-judge:0.5", "--refine", 2),
    ],
    ids=["plain", "many", "best-of", "particles", "lookahead", "reward"],
)
def test_the_same_image(tiny_mini, words):
    """Whatever the options were: the PNG alone is enough, and so is its recipe as JSON."""
    generate("a red fox", "--seed", 7, *FAST, *words, "--out", "first-{index}.png")
    for first in Path().glob("first-*.png"):
        generate("--config", first, "--out", "again.png", "--force")
        assert (pixels("again.png") == pixels(first)).all()
        text = recipes.read_png(first).to_json()
        Path("recipe.json").write_text(text, "utf-8")
        generate("--config", "recipe.json", "--out", "third.png", "--force")
        assert (pixels("third.png") == pixels(first)).all()


def test_the_command_line_replaces_it(tiny_mini):
    generate("a red fox", "--seed", 7, *FAST, "--out", "a.png")
    generate("a blue car", "--config", "a.png", "--seed", 9, "--out", "b.png")
    recipe = recipes.read_png("b.png")
    assert (recipe.prompt, recipe.guide, recipe.seed, recipe.steps) == ("a blue car",) * 2 + (9, 2)


def test_it_replaces_the_users_own_defaults(tiny_mini, monkeypatch):
    """A finished image had none of them."""
    generate("a red fox", "--seed", 7, *FAST, "--out", "a.png")
    own = {"STEPS": 3, "NEGATIVE": "blur", "BEST_OF": 2, "CFG_WINDOW": "0.2,0.9", "CLIP": "no"}
    for name, value in own.items():
        monkeypatch.setenv(f"CLIPGUIDE_GENERATE_{name}", str(value))
    generate("--config", "a.png", "--out", "b.png")
    assert (pixels("a.png") == pixels("b.png")).all()


def test_a_part_of_a_recipe(tiny_mini):
    """What somebody writes by hand; the rest is as always."""
    written("recipe.json", prompt="a red fox", steps=2, seed=7, best_of=2, options={"every": "2"})
    generate("--config", "recipe.json", "--out", "a.png")
    recipe = recipes.read_png("a.png")
    assert (recipe.prompt, recipe.steps, recipe.best_of, recipe.cfg) == ("a red fox", 2, 2, 4.0)
    assert recipe.options == {"every": "2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sede": 7}', "no field 'sede'. Did you mean seed"),
        ('{"seed": "seven"}', "seed must be a whole number from 0, not 'seven'"),
        ('{"cfg": "high"}', "cfg must be a number, not 'high'"),
        ('{"prompt": 3}', "prompt must be a text"),
        ('{"options": {"every": 2}}', "options must be a table of texts"),
        ('{"options": {"every": "["}}', "'every' in the recipe of recipe.json is not JSON"),
        ('{"options": {"glitter": "1"}}', "an option 'glitter' that the command line does not"),
        ('{"method": "shortkut"}', "Did you mean shortcut"),
        ('{"version": 3}', "format 3, and this clipguide reads format 2: update clipguide"),
        ('{"version": "x"}', "format x, and this clipguide reads format 2."),
        ('{"width": 32}', "a width alone"),
        ('{"command": "optimize"}', "clipguide replay recipe.json"),
        ('{"prompt": "fox", "cutouts": 999}', "from 0 to 256"),
        ("[1]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("\udcff", "neither a PNG nor JSON"),
        ("{}", "There is no prompt"),
    ],
)
def test_what_is_wrong_with_it(tiny_mini, text, message):
    Path("recipe.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    told = generate("--config", "recipe.json", code=2)
    assert message in " ".join(told.stderr.split()), told.stderr
    assert "Traceback" not in told.output and os.listdir() == ["recipe.json"]


def test_no_file(tiny_mini):
    assert "nothing.json cannot be read" in generate("--config", "nothing.json", code=2).stderr
    assert "There is no prompt" in generate(code=2).stderr


@pytest.mark.parametrize("field", ["model", "clip", "judge", "tiny"])
def test_nothing_is_loaded_that_nobody_asked_for(tiny_mini, field):
    written("recipe.json", prompt="fox", **{field: "/tmp/evil"})
    told = generate("--config", "recipe.json", code=2).stderr
    assert "/tmp/evil" in told and "--trust" in told
    told = generate("--config", "recipe.json", "--trust", code=None).stderr
    assert "--trust" not in told and "evil" in told
    assert "--config" in generate("fox", "--trust", code=2).stderr


@pytest.mark.parametrize("reward", ["clip=ViT-B-32", "sds=mini-judge", "dino=a.png"])
def test_no_reward_is_loaded_that_nobody_asked_for(tiny_mini, reward):
    written("recipe.json", prompt="fox", rewards={reward: ""})
    told = generate("--config", "recipe.json", code=2).stderr
    assert reward in told and "--trust" in told


def test_what_the_command_line_names_needs_no_trust(tiny_mini):
    written("recipe.json", prompt="fox", clip="/tmp/evil", steps=2)
    generate("--config", "recipe.json", "--clip", "mini", "--out", "a.png")
    assert recipes.read_png("a.png").clip == "mini"


def test_particles_of_a_batch_of_several_images():
    """The second image's particles begin at its own seed, not at the batch's first."""
    seeds = [7, 1_000_007, 8, 1_000_008]
    fields = {"method": "particles", "best_of": 2, "batch_seeds": seeds}
    for place, seed in enumerate((7, 7, 8, 8)):
        found = dict(_candidates({**fields, "batch_position": place}, {}))
        assert found == {"seed": seed}
