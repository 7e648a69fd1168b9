"""`clipguide optimize`: images, recipes, videos, nonsense, and going on after a stop."""

from __future__ import annotations

import errno
import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_cli
from clipguide.pipelines.canvas_run import Run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from clipguide.cli import unfinished
from clipguide.cli.app import app
from clipguide.recipe import read_png

FAST = ["--steps", "4", "--size", "32", "--cutouts", "2", "--lr", "0.1", "--sds", "0"]
RUN = ["optimize", "a fox", *FAST, "--seed", "7"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, tiny_mini):
    monkeypatch.chdir(tmp_path)


def invoke(*arguments, code=0):
    return test_cli.invoke(*arguments, code=code).output


def names():
    return sorted(path.name for path in Path().iterdir())


def bits(path):
    return np.asarray(Image.open(path)).tobytes()


def test_a_picture_that_can_be_made_again():
    told = invoke(*RUN)
    assert names() == ["a-fox-7.png"] and told.startswith("a-fox-7.png  guide ")
    recipe = read_png("a-fox-7.png")
    assert (recipe.command, recipe.method, recipe.steps) == ("optimize", "pixels", 4)
    assert recipe.options == {"lr": "0.1"}
    assert "pixel for pixel" in invoke("replay", "a-fox-7.png")
    invoke(*RUN, "--judge", "", "--out", "unjudged.png")
    assert "pixel for pixel" in invoke("replay", "unjudged.png")
    with Image.open("unjudged.png") as picture:
        text = PngInfo()
        for key, value in picture.text.items():
            text.add_text(key, value)
        picture.resize((16, 8)).save("small.png", pnginfo=text)
    assert "the file is 16x8, what its recipe makes 32x32" in invoke("replay", "small.png", code=1)
    told = invoke("replay", "small.png", "--out", "small.png", "--force", code=1)
    assert "the file is 16x8" in told and Image.open("small.png").size == (32, 32)


def test_several_pictures_with_all_that_there_is_to_see():
    Image.new("RGB", (40, 40), "red").save("in.png")
    told = invoke(
        *RUN, "an owl", "-n", "2", "--canvas", "pixels", "--video", "film.gif",
        "--frame-every", "2", "--preview", "2", "--init", "in.png", "--image-prompt", "in.png",
        "--out", "o/", "--json",
    )  # fmt: skip
    rows = [json.loads(line) for line in told.splitlines()]
    assert [row.get("seed") for row in rows[:4]] == [7, 8, 7, 8]
    assert [row.get("sheet") for row in rows[4:]] == ["preview", "animation"]
    assert Image.open("film.gif").n_frames in (3, 4)  # of steps 0, 2, 3, and what is kept
    assert "give --trust" in invoke("replay", "o/a-fox-8.png", code=2)
    assert "pixel for pixel" in invoke("replay", "o/a-fox-8.png", "--trust")
    Image.new("RGB", (40, 40), "blue").save("in.png")
    assert "is not the image" in invoke("replay", "o/a-fox-8.png", "--trust", code=2)


def test_prompts_over_time():
    turns = ["--prompt-at", "0:a seed", "--prompt-at", "2:a tree: with leaves"]
    invoke("optimize", *turns, *FAST, "--seed", "1")
    assert names() == ["a-seed-1.png"]
    assert json.loads(read_png("a-seed-1.png").options["prompts_at"])[1] == [
        2,
        "a tree: with leaves",
    ]
    assert "pixel for pixel" in invoke("replay", "a-seed-1.png")


def test_seconds():
    invoke("optimize", "a fox", "--seconds", "2", "--size", "32", "--cutouts", "1", "--seed", "1")
    assert read_png("a-fox-1.png").steps > 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimize"], "There is no prompt"),
        (["optimize", ""], "empty"),
        (["optimize", "blur:-1"], "add what to draw"),
        ([*RUN, "--steps", "0"], "steps must be from 1"),
        ([*RUN, "--canvas", "vqgann"], "Did you mean vqgan?"),
        ([*RUN, "--canvas", "vqgan", "--size", "33"], "multiple of 4"),
        ([*RUN, "--size", "big"], "--size is a side"),
        ([*RUN, "--seconds", "5"], "leave --steps out"),
        (["optimize", "fox", "--seconds", "0"], "above 0"),
        (["optimize", "fox", "--resume", "--seed", "1", "--seconds", "3"], "give --steps"),
        (["optimize", "fox", "--resume"], "as --seed 1"),
        ([*RUN, "--prompt-at", "tree"], "as 200:'a tree'"),
        ([*RUN, "--prompt-at", "3:a", "--prompt-at", "2:b"], "must go up"),
        ([*RUN, "--prompt-at", "4:a"], "from 0 to 3"),
        ([*RUN, "--shift", "1"], "as 2,-1"),
        ([*RUN, "--init", "no.png"], "There is no file no.png."),
        ([*RUN, "--init", "text.png"], "not an image"),
        ([*RUN, "--init", "cut.png"], "cannot be read"),
        ([*RUN, "--mask", "pixel.png"], "--mask needs --init"),
        ([*RUN, "--palette", "red,blue"], "takes colours as #rrggbb"),
        ([*RUN, "--symmetry", "round"], "There is no symmetry 'round'"),
        ([*RUN, "--video", "film.avi"], ".gif, .webp or .mp4"),
        ([*RUN, "--canvas", "vqgan", "--model", "none"], "no folder"),
        ([*RUN, "--canvas", "fourier", "--model", "mini"], "has no model"),
        ([*RUN, "--preview", "-1"], "--preview takes"),
        ([*RUN, "--out", "a.jpg"], "end 'a.jpg' in .png"),
        ([*RUN, "--count", "0"], "1 to 1000"),
        (["optimize", "b", "--prompt-at", "0:a"], "leave one of them out"),
        ([*RUN, "--frame-every", "3"], "--frame-every is for"),
        ([*RUN, "--frame-every", "0", "--zoom", "2"], "--frame-every must be from 1"),
        ([*RUN, "--seed", "-1"], "seed must be"),
        ([*RUN, "--seed", "1" + "0" * 30], "seed must be"),
        ([*RUN, "--lr", "nan"], "--lr must be above 0 to 1000"),
        ([*RUN, "--lr", "0"], "above 0"),
        ([*RUN, "--lr", "1e38"], "--lr must be above 0 to 1000"),
        ([*RUN, "--ema", "1"], "ema must be"),
        ([*RUN, "--cutouts", "0"], "cutouts must be from 1"),
        ([*RUN, "--size", "9000", "--init", "pixel.png"], "8 to 8192"),
        ([*RUN, "--canvas", "vqgan", "--size", "70", "--grow", "2"], "multiple of 4"),
        ([*RUN, "--canvas", "vqgan", "--softness", "1e-45"], "at least 1e-06"),
        ([*RUN, "--patience", "0"], "patience must be from 1"),
        ([*RUN, "--zoom", "2", "--patience", "3"], "leave patience out"),
        ([*RUN, "--views", "wraped"], "Did you mean warped?"),
        ([*RUN, "--start", "dark"], "no start"),
        ([*RUN, "--dtype", "float23"], "no dtype"),
        ([*RUN, "--canvas", "vqgan", "--model", "a" * 5000], "no folder"),
        ([*RUN, "--canvas", "vqgan", "--model", "weights.ckpt"], "may be a pickle"),
        ([*RUN, "--init", "."], "is not a file"),
        ([*RUN, "--init", "pixel.png", "--mask", "pixel.png", "--grow", "2"], "white all over"),
    ],
    ids=str,
)
def test_nonsense(arguments, words):
    Path("text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save("a.png")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:3000])
    Path("a.png").unlink()
    Path("weights.ckpt").write_bytes(b"?")
    Image.new("L", (1, 1), 255).save("pixel.png")
    told = " ".join(invoke(*arguments, code=2).split())
    assert words in told and told.count("clipguide:") == 1
    left = ["cut.png", "pixel.png", "text.png", "weights.ckpt"]
    assert names() == left  # and nothing else


def test_nothing_is_overwritten():
    invoke(*RUN)
    assert "is there already" in invoke(*RUN, code=2)
    invoke(*RUN, "--force")


def test_score_distillation_is_on(monkeypatch):
    """By default; such an image is made again without --trust, and goes on after a stop."""
    given = ["optimize", "a fox", *FAST[:-2], "--seed", "7"]
    invoke(*given, "--out", "whole.png")
    assert list(read_png("whole.png").rewards) == ["sds:2"]
    assert "pixel for pixel" in invoke("replay", "whole.png")
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    stopped(monkeypatch, 2, *given, "--resume", "--out", "again.png")
    invoke(*given, "--resume", "--out", "again.png")
    with Image.open("whole.png") as whole, Image.open("again.png") as again:
        assert whole.tobytes() == again.tobytes()
    assert "sds" in invoke(*given, "--sds", "11", code=2)


def test_a_full_disk_while_the_video_is_written():
    code = "from clipguide.cli.app import app; app()"
    models = tiny_models()
    command = [sys.executable, "-c", code, *RUN, "--canvas", "vqgan", *models, "--steps", "30"]
    command += ["--video", "film.gif", "--frame-every", "1"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert run.returncode == 1 and "film.gif cannot be written" in run.stderr, run.stderr
    assert "Traceback" not in run.stderr and names() == ["a-fox-7.png"]


def tiny_models():
    from clipguide import mini

    names = {"--model": "vqgan", "--clip": "guide", "--judge": "judge"}
    return [part for flag, name in names.items() for part in (flag, str(mini.path(name)))]


# Going on


@pytest.fixture
def every_step(monkeypatch):
    """A state after each step."""
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)


def stopped(monkeypatch, steps, *arguments):
    """Run until so many steps are done, then as if ctrl-C were pressed."""
    step, done = Run.step, []

    def stopping(self):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(step(self))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", stopping)
        result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == 130, result.output


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_it_goes_on(monkeypatch, every_step, steps):
    more = ["-n", "2", "--video", "film.gif", "--frame-every", "1"]
    invoke(*RUN, *more, "--out", "whole/")
    whole_film = Path("film.gif").read_bytes()
    Path("film.gif").unlink()
    run = [*RUN, *more, "--out", "parts/", "--resume"]
    stopped(monkeypatch, steps, *run)
    invoke(*run)
    for name in ("a-fox-7.png", "a-fox-8.png"):
        assert bits(f"parts/{name}") == bits(f"whole/{name}")
        assert read_png(f"parts/{name}") == read_png(f"whole/{name}")
    assert Path("film.gif").read_bytes() == whole_film
    assert sorted(p.name for p in Path("parts").iterdir()) == ["a-fox-7.png", "a-fox-8.png"]


def test_other_settings_are_refused(monkeypatch, every_step):
    stopped(monkeypatch, 2, *RUN, "--resume")
    assert "has no --video" in invoke(*RUN, "--resume", "--video", "a.gif", code=2)
    told = " ".join(invoke(*RUN, "--resume", "--steps", "8", code=2).split())
    assert "steps: 4 then, 8 now" in told and "--force" in told
    told = invoke(*RUN, "--resume", "--steps", "8", "--force")
    assert "will not make it again" in " ".join(told.split())
    assert read_png("a-fox-7.png").steps == 8


def test_a_state_that_does_not_fit_or_is_broken(monkeypatch, every_step):
    stopped(monkeypatch, 2, *RUN, "--resume")
    (folder,) = Path().glob(".*-steps")
    assert "delete" in invoke(*RUN, "--resume", "--size", "64", "--force", code=2)
    (folder / "state.pt").write_bytes(b"no state")
    assert "cannot be read" in invoke(*RUN, "--resume", code=1)
    shutil.rmtree(folder)
    invoke(*RUN, "--resume")


def test_a_full_disk_while_the_state_is_written(monkeypatch, every_step):
    def limit(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", limit)
    assert "free some space" in invoke(*RUN, "--resume", code=1)


def test_a_gradient_that_is_no_number(monkeypatch):
    from clipguide.objectives import Similarity

    call = Similarity.__call__
    monkeypatch.setattr(
        Similarity, "__call__", lambda *args, **settings: call(*args, **settings) * math.nan
    )
    told = " ".join(invoke(*RUN, code=1).split())
    assert "lower the rate" in told and names() == []


@pytest.mark.slow
def test_kill():
    """kill -9 at 20 random moments; the same pixels in the end."""
    code = "from clipguide.cli import unfinished; unfinished.SECONDS = 0.05\n"
    code += "from clipguide.cli.app import app; app()"
    command = [sys.executable, "-c", code, *RUN, *tiny_models(), "--steps", "200"]
    start = time.monotonic()
    subprocess.run([*command, "--out", "whole.png"], check=True, timeout=300)
    whole = time.monotonic() - start
    draw, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen([*command, "--out", "parts.png", "--resume"])
        time.sleep(draw.uniform(0.4 * whole, whole))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            assert bits("parts.png") == bits("whole.png")
            Path("parts.png").unlink()
    subprocess.run([*command, "--out", "parts.png", "--resume"], check=True, timeout=300)
    assert bits("parts.png") == bits("whole.png")
    assert names() == ["parts.png", "whole.png"]
