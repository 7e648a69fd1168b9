"""clipguide finetune, as it is typed: what it prints, where it exits, that nothing is lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coloured import write
from safetensors.torch import load_file
from test_finetune_run import same_state
from typer.testing import CliRunner

from clipguide import load_clip
from clipguide.cli.app import app
from clipguide.errors import ClipguideError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pictures"), 10)


def run(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


SETTINGS = ("--batch", "8", "--templates", "plain", "--retain", "none", "--seed", "1")


def test_the_whole(clip_folder, pictures, tmp_path):
    out = tmp_path / "mine"
    done = run(pictures, "--clip", clip_folder, "-o", out, "--steps", 8, *SETTINGS)
    assert done.exit_code == 0, done.output
    table = [line.split() for line in done.stdout.splitlines()]
    assert table[0] == ["before", "after"] and table[1][:2] == ["target:", "top-1"]
    assert done.stdout.splitlines()[-1] == str(out)
    assert "30 images in 3 classes, 10 each." in done.stderr and "epoch 1, step" in done.stderr
    figure = json.loads((out / "finetune.json").read_text())["figures"]["target: top-1"]
    assert table[1][2::2] == [f"{100 * value:.1f}" for value in figure]
    assert not (tmp_path / "mine.unfinished").exists()
    scored = CliRunner().invoke(
        app,
        ["score", str(pictures / "a red thing" / "0.png"), "--text", "a fox", "--clip", str(out)],
    )
    assert scored.exit_code == 0, scored.output
    again = run(pictures, "--clip", clip_folder, "-o", out, *SETTINGS)
    assert again.exit_code == 2 and "is there already: give another --out" in again.stderr


def test_the_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    (code,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    told: dict = {}
    exec(compile(code, "finetune.md", "exec"), told)
    assert told["clip"].fingerprint == load_clip(tmp_path / "my-clip").fingerprint
    assert told["outcome"].after[0].figures["top-1"] >= 0.9


def test_only_a_look(pictures, tmp_path):
    done = run(pictures, "--dry-run", "-o", tmp_path / "mine")
    assert done.exit_code == 0 and "30 images in 3 classes" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "heda"), "There is no method 'heda'. Did you mean head?"),
        (("--allow", "-1"), "--allow must be from 0 to 100"),
        (("--share", "1"), "--share must be above 0 to below 1"),
        (("--resume",), "There is no run to continue in"),
        (("--image-column", "foto"), "column"),
        (("--retain", "/nowhere"), "There is no file or folder /nowhere."),
        (("--clip", "mini+mini-judge"), "are several CLIPs: name one"),
        (("--minutes", "3"), "--minutes has no effect without --for-guiding"),
        (("--for-guiding", "--epochs", "3"), "--epochs has no effect with --for-guiding"),
        (("--for-guiding", "--clip", "mini-judge"), "The judge mini-judge is the CLIP itself"),
    ],
)
def test_one_sentence_each(pictures, tmp_path, arguments, said):
    done = run(pictures, "-o", tmp_path / "mine", "--steps", 1, *arguments)
    assert done.exit_code == 2, done.output
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("clipguide: ")]
    assert said in line
    assert not list(tmp_path.iterdir())


def test_without_out(pictures):
    done = run(pictures)
    assert done.exit_code == 2 and "--out" in done.stderr


def test_stopped_and_gone_on_with(clip_folder, pictures, tmp_path, monkeypatch):
    """A run that fails as it saves has its checkpoint still, and --resume only saves."""
    monkeypatch.setattr("clipguide.finetune.run.SECONDS", 0.0)
    out = tmp_path / "mine"
    command = (pictures, "--clip", clip_folder, "-o", out, "--steps", 5, *SETTINGS)
    with monkeypatch.context() as broken:

        def fail(*_, **__):
            raise ClipguideError("The disk is gone.")

        broken.setattr("clipguide.finetune.report.write", fail)
        assert run(*command).exit_code == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.unfinished"]
    refused = run(*command)
    assert refused.exit_code == 2 and "--resume continues it, --force starts" in refused.stderr
    wrong = run(*command, "--force", "--method", "heda")
    assert wrong.exit_code == 2 and (tmp_path / "mine.unfinished" / "checkpoint.pt").exists()
    other = run(*command[:-1], "2", "--resume")
    assert other.exit_code == 2 and "is another run" in other.stderr
    assert run(*command, "--resume").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


@pytest.mark.slow
def test_killed_at_random_moments(clip_folder, pictures, tmp_path):
    """kill -9 at 20 moments: it goes on each time, and ends in the weights of a whole run."""
    base = [sys.executable, "-c"]
    base += [
        "import clipguide.finetune.run as r; r.SECONDS = 0.0\n"
        "import torch; torch.set_num_threads(1)\n"
        "from clipguide.cli.app import main; main()"
    ]
    settings = ["--clip", str(clip_folder), "--steps", "400", "--patience", "999", *SETTINGS]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out, *more):
        command = [*base, "finetune", str(pictures), "-o", str(out), *settings, *more]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    _, said = whole.communicate()
    assert whole.returncode == 0, said.decode()
    out, checkpoint = tmp_path / "mine", tmp_path / "mine.unfinished" / "checkpoint.pt"
    rng, reached = random.Random(0), [-1]
    while len(reached) <= 20:
        process = start(out, *(["--resume"] if checkpoint.exists() else []))
        until = time.monotonic() + 300
        while _step(checkpoint) <= reached[-1] and time.monotonic() < until:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(_step(checkpoint))
    assert sorted(set(reached)) == reached and reached[-1] < 400
    done = start(out, "--resume")
    _, said = done.communicate()
    assert done.returncode == 0, said.decode()
    name = "open_clip_model.safetensors"
    same_state(load_file(out / name), load_file(tmp_path / "whole" / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "whole"]


def _step(checkpoint):
    """How far the run was that wrote it."""
    import torch

    for path in (checkpoint, checkpoint.with_name("checkpoint-before.pt")):
        try:
            return torch.load(path, weights_only=True)["state"]["fit"]["index"]
        except FileNotFoundError:  # it is being replaced
            pass
    return -1
