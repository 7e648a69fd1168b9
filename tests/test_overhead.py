"""benchmarks/overhead.py: its sum against one made by hand, its pieces on a toy, its bars."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.overhead import Job, Pieces, default_run, draw, peak, timed, whole
from benchmarks.random_models import pipeline, scheduler
from clipguide.guidance import Shortcut

ROOT = Path(__file__).parent.parent
TOY = Job(geometry="toy", device="cpu")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_whole():
    """Four steps: steered and scored, steered, plain, plain and scored."""
    pieces = Pieces(
        denoiser=100, plain=1, steered=10, first=30, score=2, picture=5, start=3, decoding=50
    )
    run = [(True, True), (True, False), (False, False), (False, True)]
    assert whole(pieces, run) == (4 * 101 + 50, 3 + 4 * 100 + 30 + 10 + 1 + (1 + 2 + 5) + 50)


@pytest.mark.parametrize("geometry", ["SD 1.5", "SDXL"])
def test_default_run(geometry):
    """Steered where the noise is in the window, scored at every fifth step and the last."""
    run = default_run(geometry)
    own = scheduler(geometry)
    own.set_timesteps(50)
    low = Shortcut().window[0]
    share_S = 1 - own.alphas_cumprod[own.timesteps.long()]  # variance of the noise
    steered = [math.asin(math.sqrt(share)) * 2 / math.pi >= low for share in share_S.tolist()]
    assert [s for s, _ in run] == steered
    assert [i for i, (_, scored) in enumerate(run) if scored] == [*range(0, 50, 5), 49]


def test_draw():
    """Only as many steps as are asked for are drawn, of a schedule of 50; then a picture."""
    pipe, settings = pipeline("toy")
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, given: seen.append(int(given[1])))
    denoiser_S2, rest_S2, decoding_2 = draw(pipe, settings, 3)
    assert len(seen) == len(denoiser_S2) == len(rest_S2) == 3
    own = scheduler("toy")
    own.set_timesteps(50)
    assert seen == own.timesteps[:3].tolist()
    assert (denoiser_S2 > 0).all() and (decoding_2 > 0).all()


def test_pieces():
    """Steering shows in the step that is steered, and nowhere else."""
    found = timed(TOY)
    for pieces in found.values():
        assert pieces.first >= pieces.steered > 3 * pieces.plain > 0
        assert pieces.picture == 0 and pieces.score > 0
    assert peak(TOY) > 100  # of this process: torch alone has more


@pytest.mark.slow
def test_quick(tmp_path):
    """The command, with its processes."""
    out = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", "--quick", "--out", str(out)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) == 3
    auto, vae = json.loads(out.read_text())["rows"]
    assert (auto["decoder"], vae["decoder"]) == ("auto", "vae")
    assert auto["mebibytes"][1] > auto["mebibytes"][0]


@pytest.mark.bench
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bars(device, tmp_path):
    """By default: 1.20 of the time, 1.15 of the memory."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("There is no CUDA here.")
    out = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", "--decoders", "auto"]
    command += ["--devices", device, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    for row in json.loads(out.read_text())["rows"]:
        time = row["processor"] if device == "cpu" else row["clock"]
        assert time <= 1.20 and row["memory"] <= 1.15, row
