"""Terminals and shells: completion, a plain locale, a pipe that closes, no colour."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from clipguide.cli.app import app

FISH = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}


def completion(**env: str) -> str:
    done = CliRunner().invoke(app, [], env=env, prog_name="clipguide")
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    """The script that a shell reads, and what it then gets: verbs, and the choices of an option."""
    assert "clipguide" in completion(_CLIPGUIDE_COMPLETE=f"source_{shell}")
    asked = {"_CLIPGUIDE_COMPLETE": f"complete_{shell}", **FISH}

    def given(line: str) -> str:
        count = str(len(line.split(" ")) - 1)
        words = {"COMP_WORDS": line, "COMP_CWORD": count, "_TYPER_COMPLETE_ARGS": line}
        return completion(**asked, **words)

    assert "generate" in given("clipguide gen") and "score" not in given("clipguide gen")
    metrics = given("clipguide score --metric ")
    assert "clipscore" in metrics and "probability" in metrics


def test_choices_are_completed():
    """Those of options that take other names as well, and all methods that there are."""
    from clipguide.cli import steering
    from clipguide.guidance.methods import METHODS

    assert {*steering.NAMES} - {"auto"} <= {*METHODS}

    def given(line: str) -> str:
        count = str(len(line.split(" ")) - 1)
        words = {"COMP_WORDS": line, "COMP_CWORD": count}
        return completion(_CLIPGUIDE_COMPLETE="complete_bash", **words)

    for line, word in {
        "clipguide generate --method ro": "rollover",
        "clipguide generate --resampling s": "systematic",
        "clipguide generate --dtype b": "bfloat16",
        "clipguide optimize --canvas f": "fourier",
        "clipguide score --alpha d": "drop",
        "clipguide export --to o": "onnx",
    }.items():
        assert given(line).split()[0] == word


def program(*words: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "clipguide", *words]
    return subprocess.run(command, capture_output=True, env={**os.environ, **env})


def test_a_plain_locale():
    """LANG=C, and no help of Python's own: names of things that are not ASCII are printed."""
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = program("optimize", "--help", **plain)
    assert shown.returncode == 0 and not shown.stderr
    told = program("score", "狐.png", "--text", "a fox", **plain)
    assert told.returncode == 2 and b"Traceback" not in told.stderr
    assert "狐".encode() in told.stderr


def test_no_colour():
    for env in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        told = program("generate", "--sede", "7", **env)
        assert told.returncode == 2 and not re.search(rb"\x1b\[", told.stderr)


def test_a_pipe_that_closes():
    """`clipguide … | head -1` ends without a word."""
    command = [sys.executable, "-m", "clipguide", "generate", "--help"]
    ours, theirs = subprocess.PIPE, subprocess.PIPE
    with subprocess.Popen(command, stdout=ours, stderr=theirs) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert b"Traceback" not in said and b"Exception ignored" not in said
