"""Defaults from a file and the environment: which one counts, and what is wrong with one."""

from __future__ import annotations

import json
import os
import re

import pytest
from typer.testing import CliRunner

from clipguide.cli.app import app

run = CliRunner()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the file that is read."""
    for name in [name for name in os.environ if name.startswith("CLIPGUIDE_")]:
        monkeypatch.delenv(name)
    place = tmp_path / "config.toml"
    monkeypatch.setenv("CLIPGUIDE_CONFIG", os.fspath(place))

    def write(text: str):
        place.write_text(text, "utf-8")
        return place

    return write


def shown() -> dict[str, tuple[object, str]]:
    rows = json.loads(run.invoke(app, ["config", "--json"]).stdout)["settings"]
    return {f"{row['verb']}.{row['option']}": (row["value"], row["source"]) for row in rows}


def test_which_one_counts(write, monkeypatch):
    """The command line, then the environment, then the verb's table, then [defaults]."""
    place = write('[defaults]\nclip = "a"\nsteps = 3\n[generate]\nsteps = 4\n')
    found = shown()
    assert found["generate.steps"] == (4, f"{place}, [generate]")
    assert found["optimize.steps"] == (3, f"{place}, [defaults]")
    assert found["score.clip"] == ("a", f"{place}, [defaults]")
    assert "score.steps" not in found
    monkeypatch.setenv("CLIPGUIDE_STEPS", "5")
    assert shown()["generate.steps"] == ("5", "$CLIPGUIDE_STEPS")
    monkeypatch.setenv("CLIPGUIDE_GENERATE_STEPS", "6")
    found = shown()
    assert found["generate.steps"] == ("6", "$CLIPGUIDE_GENERATE_STEPS")
    assert found["optimize.steps"] == ("5", "$CLIPGUIDE_STEPS")


def test_a_verb_follows_it_unless_told_otherwise(write, tmp_path):
    """Of three images two are kept by the file, one by the command line."""
    from PIL import Image

    for k in range(3):
        Image.new("RGB", (32, 32), (80 * k, 0, 0)).save(tmp_path / f"{k}.png")
    write('[rerank]\ntop = 2\ntext = "red"\nformat = "csv"\n')
    asked = ["rerank", os.fspath(tmp_path)]
    rows = run.invoke(app, asked).stdout.splitlines()
    assert len(rows) == 3 and "," in rows[0]
    assert len(run.invoke(app, [*asked, "--top", "1"]).stdout.splitlines()) == 2


def test_flags_and_options_that_are_given_again(write):
    write('[score]\ntext = ["a", "b"]\nbf16 = true\n')
    found = shown()
    assert found["score.text"][0] == ["a", "b"] and found["score.bf16"][0] is True


@pytest.mark.parametrize(
    "text, message",
    [
        ("[generate]\nstepz = 4\n", r"\[generate\]: there is no option 'stepz'. Did you mean step"),
        ("[defaults]\nstepz = 4\n", r"\[defaults\]: there is no option 'stepz'. Did you mean step"),
        ("[genrate]\nsteps = 4\n", r"there is no command \[genrate\]. Did you mean generate"),
        ("steps = 4\n", r"steps is not in a table: put it under one, such as \[generate\]"),
        ("[generate]\nsteps = true\n", r"\[generate\]: steps takes a value, not true or false"),
        ("[generate]\nsteps = [1]\n", r"steps takes a number or a text, not \[1\]"),
        ("[generate]\nsteps = 2026-01-01\n", r"steps takes a number or a text, not 2026-01-01"),
        ("[score]\ntext = [[1]]\n", r"text takes a number or a text, not \[\[1\]\]"),
        ("[config]\njson = true\n", r"there is no command \[config\]"),
        ("version = 2\n", "is of version 2; this clipguide reads version 1"),
        ("[generate\n", "is not a valid TOML file"),
        ('[generate]\nsteps = "many"\n', r"'--steps'.*config.toml, \[generate\]"),
    ],
)
def test_what_is_wrong_with_it(write, text, message):
    write(text)
    told = run.invoke(app, ["generate", "a fox"])
    assert told.exit_code == 2
    assert re.search(message, " ".join(re.sub("[│╭╮╰╯─]", " ", told.stderr).split())), told.stderr


def test_a_variable_with_a_wrong_value(write, monkeypatch):
    write("")
    monkeypatch.setenv("CLIPGUIDE_GENERATE_STEPS", "many")
    told = run.invoke(app, ["generate", "a fox"])
    assert told.exit_code == 2 and "$CLIPGUIDE_GENERATE_STEPS" in told.stderr
    told = run.invoke(app, ["generate", "a fox", "--steps", "more"])
    assert "'--steps'" in told.stderr and "$CLIPGUIDE_GENERATE_STEPS" not in told.stderr


def test_a_variable_that_is_no_text(write, monkeypatch):
    """Bytes that no encoding has: the message names the variable and prints none of them."""
    write("")
    monkeypatch.setitem(os.environ, "CLIPGUIDE_GENERATE_STEPS", os.fsdecode(b"\xff\xfe"))
    told = run.invoke(app, ["generate", "a fox"])
    assert told.exit_code == 2 and "$CLIPGUIDE_GENERATE_STEPS" in told.stderr
    assert "UTF-8" in told.stderr and "raw data" not in told.stderr
    shown = run.invoke(app, ["config"])
    assert shown.exit_code == 0 and "\\udcff" in shown.stdout


def test_a_variable_that_sets_nothing_is_told_of(write, monkeypatch):
    write("")
    monkeypatch.setenv("CLIPGUIDE_STEPZ", "5")
    monkeypatch.setenv("CLIPGUIDE_STEPS", "5")
    told = run.invoke(app, ["config"]).stderr
    assert "$CLIPGUIDE_STEPZ sets no option" in told and "$CLIPGUIDE_STEPS " not in told


def test_variables_that_mean_something_else(write, monkeypatch):
    """They are read elsewhere, and are no defaults of the options of that name."""
    write("")
    for name in ("CACHE", "DB", "AUTH", "REWARD_KEY"):
        monkeypatch.setenv(f"CLIPGUIDE_{name}", "x")
    assert shown() == {} and not run.invoke(app, ["config"]).stderr


def test_a_file_that_is_named_and_not_there(write):
    told = run.invoke(app, ["generate", "a fox"])
    assert told.exit_code == 2 and "$CLIPGUIDE_CONFIG names" in told.stderr


def test_the_file_need_not_be_there(write, monkeypatch, tmp_path):
    monkeypatch.delenv("CLIPGUIDE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(tmp_path))
    told = run.invoke(app, ["config"])
    assert told.exit_code == 0 and told.stdout.strip().endswith("config.toml (not there)")
