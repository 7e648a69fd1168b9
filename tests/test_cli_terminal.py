"""Terminals and shells: completion, a plain locale, a pipe that closes, no colour."""

from __future__ import annotations

import enum
import os
import re
import subprocess
import sys

import pytest
from typer.main import get_command
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


def test_every_closed_list_is_completed():
    """An option whose metavar or type lists its values offers each of them, in every command."""
    found = 0
    for verb, command in get_command(app).commands.items():
        for option in getattr(command, "params", ()):
            metavar, kind = option.metavar or "", getattr(option, "type_descriptor", None)
            names = (
                metavar.split("|") if re.fullmatch(r"[a-z0-9-]+(\|[a-z0-9-]+)+", metavar) else []
            )
            annotation = kind.annotation if kind else None
            if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
                names = [member.value for member in annotation]
            if not names or "--" not in max(option.opts, key=len):
                continue
            line = f"clipguide {verb} {max(option.opts, key=len)} "
            words = {"COMP_WORDS": line, "COMP_CWORD": "3"}
            given = completion(_CLIPGUIDE_COMPLETE="complete_bash", **words).split()
            assert set(names) <= set(given), (line, given)
            found += 1
    assert found > 20


@pytest.mark.parametrize("option", ["generate --method", "generate --reward", "score --device"])
def test_completion_does_not_import_torch(option):
    words = {"COMP_WORDS": f"clipguide {option} ", "COMP_CWORD": "3"}
    code = (
        "import sys\ntry:\n    from clipguide.cli.app import app\n    app(prog_name='clipguide')\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "_CLIPGUIDE_COMPLETE": "complete_bash", **words}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, text=True)
    assert done.returncode == 0 and len(done.stdout.split()) > 2, done.stderr


def test_names_of_plugins_are_completed(monkeypatch):
    added = {"method": "sparkle", "reward": "dark", "canvas": "sand"}
    monkeypatch.setattr("clipguide.cli.options.ADDED", set(added.items()))
    for option, kind in (
        ("generate --method", "method"),
        ("generate --reward", "reward"),
        ("generate --select", "reward"),
        ("optimize --canvas", "canvas"),
    ):
        words = {"COMP_WORDS": f"clipguide {option} ", "COMP_CWORD": "3"}
        given = set(completion(_CLIPGUIDE_COMPLETE="complete_bash", **words).split())
        assert given & set(added.values()) == {added[kind]}, option


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
