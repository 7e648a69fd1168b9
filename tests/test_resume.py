"""`clipguide generate --resume`: stopped anywhere, killed too, the same pixels in the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_cli
from clipguide.pipelines.batch import Batch
from clipguide.pipelines.text_to_image import TextToImage
from PIL import Image
from typer.testing import CliRunner

from clipguide.cli.app import app
from clipguide.errors import UsageError
from clipguide.recipe import read_png

RUN = ["generate", "a fox", "an owl", "-n", "2", "--steps", "4", "--seed", "7", "--trace"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def invoke(*arguments, code=0):
    return test_cli.invoke(*arguments, code=code).output


def made(folder) -> dict[str, tuple[bytes, dict]]:
    """Pixels and text of each image in a folder, and nothing else may be there."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        with Image.open(path) as image:
            found[path.name] = (np.asarray(image).tobytes(), dict(image.text))
    return found


def stop_after(monkeypatch, steps: int):
    """Ctrl-C after so many steps."""
    iterate = TextToImage.iterate

    def stopped(self, *args, on_step=None, **settings):
        seen = []

        def watch(step):
            on_step(step)
            seen.append(step)
            if len(seen) > steps:
                raise KeyboardInterrupt

        return iterate(self, *args, on_step=watch, **settings)

    monkeypatch.setattr(TextToImage, "iterate", stopped)
    return lambda: monkeypatch.setattr(TextToImage, "iterate", iterate)


@pytest.mark.parametrize("more", [[], ["--best-of", "2"], ["--method", "particles"]], ids=str)
def test_stopped(tiny_mini, monkeypatch, more):
    """After the first step, and later; what was whole is drawn once for all three."""
    invoke(*RUN, *more, "--out", "whole")
    for steps in (0, 5, 9):
        parts = f"parts-{steps}"
        undo = stop_after(monkeypatch, steps)
        result = CliRunner().invoke(app, [*RUN, *more, "--out", parts, "--resume"])
        assert result.exit_code != 0
        undo()
        before = made_so_far(parts)
        told = invoke(*RUN, *more, "--out", parts, "--resume", "--json")
        assert made(parts) == made("whole")
        assert len(told.splitlines()) == 4
        after = {path: path.stat().st_mtime_ns for path in before}
        assert after == before  # what was there was not written again


def made_so_far(folder) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("*.png")}


def test_a_batch_of_which_one_is_gone(tiny_mini):
    """It is drawn in its batch, as it was."""
    draw, whole = TextToImage(), {}
    for index, picture in enumerate(draw(["a fox", "an owl"], count=2, steps=2, batch_size=4)):
        whole[index] = picture
    del whole[2]

    def finished(index, recipes):
        assert len(recipes) == 1
        return whole.get(index)

    again = list(
        draw.iterate(["a fox", "an owl"], count=2, steps=2, batch_size=4, finished=finished)
    )
    assert [again[i] is whole.get(i) for i in range(4)] == [True, True, False, True]
    assert again[2].recipe.batch_position == 2


def test_all_is_there_already(tiny_mini, monkeypatch):
    first = invoke(*RUN, "--out", "out")
    monkeypatch.setattr(Batch, "draw", lambda *_: pytest.fail("drawn again"))
    assert invoke(*RUN, "--out", "out", "--resume") == first


def test_a_picture_of_another_run(tiny_mini):
    invoke(*RUN, "--out", "out")
    text = invoke(*RUN, "--out", "out", "--resume", "--strength", "0.3", code=2)
    assert "strength: 0.2 then, 0.3 now" in " ".join(text.split())
    Image.new("RGB", (32, 32)).save("out/a-fox-7.png")
    assert "no recipe" in invoke(*RUN, "--out", "out", "--resume", code=2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--force", "--seed", "1"], "--force"),
        (["--video", "a.gif", "--seed", "1"], "--video"),
        ([], "--seed 1"),
    ],
)
def test_what_does_not_go_with_it(tiny_mini, more, message):
    assert message in invoke("generate", "fox", "--resume", *more, code=2)
    assert not list(Path().iterdir())


def test_frames_are_not_taped(tiny_mini):
    with pytest.raises(UsageError, match="Frames"):
        TextToImage().iterate("fox", tapes="tapes", frames=True)


def test_half_written_files_go(tiny_mini):
    Path("fox-1.png.part").touch()
    Path(".fox-1.png.abcd.part").touch()
    invoke("generate", "fox", "--steps", "1", "--seed", "1", "--resume")
    assert sorted(p.name for p in Path().iterdir()) == ["fox-1.png", "fox-1.png.part"]


@pytest.mark.slow
def test_kill(generator_folder, clip_folder, judge_folder):
    """kill -9 at 20 random moments, half of them while it draws."""
    models = ["--model", generator_folder, "--clip", clip_folder, "--judge", judge_folder]
    command = [sys.executable, "-c", "from clipguide.cli.app import app; app()", *RUN, *models]
    command = [str(part) for part in [*command, "--steps", "60", "--device", "cpu"]]
    start = time.monotonic()
    subprocess.run([*command, "--out", "whole"], check=True, timeout=300)
    whole = time.monotonic() - start
    draw, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen([*command, "--out", "parts", "--resume"])
        if kills % 2:
            while process.poll() is None and not any(Path().glob("parts/.*-steps/*/*")):
                time.sleep(0.01)
            time.sleep(draw.uniform(0, whole / 10))
        else:
            time.sleep(draw.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:  # it was done: once more, from nothing
            assert pictures("parts") == pictures("whole")
            shutil.rmtree("parts")
    subprocess.run([*command, "--out", "parts", "--resume"], check=True, timeout=300)
    assert pictures("parts") == pictures("whole")


def pictures(folder) -> dict[str, tuple[bytes, dict]]:
    """Pixels, trace and recipe, of all that is in the folder."""
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    found = made(folder)
    for name in found:
        assert json.loads(read_png(Path(folder) / name).to_json())["steps"] == 60
    return found
