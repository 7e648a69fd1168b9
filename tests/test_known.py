"""What the embedded generator says that it knows."""

from __future__ import annotations

import json

import pytest

from clipguide import mini
from clipguide.mini import known

THINGS = ["fox", "apple", "hot air balloon", "sushi", "fox and apple"]


@pytest.fixture
def taught(tmp_path, monkeypatch):
    """A generator that knows foxes, apples and sushi."""
    words = ["fox", "apple", "sushi", "hot", "air", "balloon", "zorro", "狐", "🦊", "glass", "glas"]
    found = {"things": THINGS, "words": words}
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator/known.json").write_text(json.dumps(found), "utf-8")
    monkeypatch.setattr(mini, "FOLDER", tmp_path)


@pytest.mark.parametrize(
    "prompt",
    ["a red fox", "three green apples", "a hot air balloon", "un zorro negro", "赤い狐", "🦊",
     "a fox, flat icon", "an apple on a yellow background", "a shiny fox", "red", "", "sushi!",
     "an apple and a fox", "a black and white fox", "a fox on the left", "apple sushi"],
)
def test_no_doubt(taught, prompt):
    assert known.doubt(prompt) is None


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("freedom", "does not seem to know 'freedom'"),
        ("asdfghjkl qwertz", "know 'asdfghjkl, qwertz'"),
        ("a courtroom sketch of a fox", "know 'courtroom, sketch'"),
        ("a fox with an apple, sushi and a balloon", "may not draw all of 'a fox with an apple"),
        ("a fox and sushi", "may not draw all of 'a fox and sushi'"),
        ("a red fox to the left of a balloon", "may not draw all of 'a red fox to"),
        ("a fox eating sushi", "may not draw all of"),
        ("赤い車", "know '赤い車'"),
    ],
)
def test_doubt(taught, prompt, message):
    said = known.doubt(prompt)
    assert message in said and said.endswith("use --model.")


def test_an_image_that_is_unlike_its_prompt(taught):
    """By the sum of both scores, once: not where the words alone raised a doubt."""
    assert known.unlike("a red fox", 0.2, known.LEAST - 0.2) is None
    said = known.unlike("a red fox", 0.2, known.LEAST - 0.21)
    assert "does not seem to show 'a red fox'" in said and said.endswith("use --model.")
    assert known.unlike("赤い狐", 0.0, 0.0) and known.unlike("un zorro", 0.0, 0.0)
    assert known.unlike("freedom", 0.0, 0.0) is None and known.unlike("🦊", 0.0, 0.0)


def test_a_long_prompt_needs_less(taught):
    """From LONG words on, by their number and not by what they name."""
    short = "a red fox on the left"
    long = f"{short} red"
    assert len(known.split(short)) == known.LONG - 1 and len(known.split(long)) == known.LONG
    assert known.LEAST_IF_LONG < known.LEAST
    between = (known.LEAST + known.LEAST_IF_LONG) / 2
    assert known.unlike(short, between, 0.0) and known.unlike(long, between, 0.0) is None
    assert known.unlike(long, known.LEAST_IF_LONG - 0.01, 0.0)


def test_things(taught):
    assert known.things() == sorted(THINGS)
    assert known.things("Air") == ["hot air balloon"] and known.things("zebra") == []


def test_without_a_list(tmp_path, monkeypatch):
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(mini, "FOLDER", tmp_path)
    assert known.things() == [] and known.doubt("freedom") is None


def test_the_embedded_list():
    """Every thing is made of known words, so that its own name never raises a doubt."""
    names = known.things()
    assert len(names) > 1000
    doubted = [name for name in names if known.doubt(name) and len(name.split()) <= known.MOST]
    assert not doubted
