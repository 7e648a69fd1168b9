"""Measure the cold start of the first command, and whether the same seed gives the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from clipguide.errors import ClipguideError
from training.evaluate.ledger import Figure, Settings, figure

PROMPT = "a red fox"
STARTS = 3
PICTURES = 8
# The command runs under this small process: what it forks from counts into the peak of its memory.
TIMER = """
import json, os, sys, time
start = time.perf_counter()
child = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(json.dumps([status, time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9]))
"""


def cold(settings: Settings) -> Iterator[Figure]:
    """Measure `clipguide generate "a red fox"` in new processes: the longest time, the most memory.
    """
    command = Path(sys.executable).parent / "clipguide"
    if not command.exists():
        raise ClipguideError(f"There is no {command}: pip install -e . into this environment.")
    starts = min(STARTS, settings.limit or STARTS)
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(starts):
            done = subprocess.run(
                [sys.executable, "-S", "-c", TIMER, str(command), "generate", PROMPT, "--quiet",
                 "--seed", str(seed)],
                cwd=folder, capture_output=True, text=True, check=True)
            status, took, peak = json.loads(done.stdout.splitlines()[-1])
            if status:
                raise ClipguideError(f"clipguide generate failed: {done.stderr.strip()[-300:]}")
            seconds.append(took)
            peaks.append(peak)
    weights = Settings().weights("generator", "guide", "judge")
    note = f"the worst of {starts}; {torch.get_num_threads()} threads"
    yield figure("clipguide: cold start", max(seconds), n=starts, weights=weights, note=note)
    yield figure("clipguide: cold start, peak memory", max(peaks), n=starts, weights=weights,
                 note=note)


def bits(settings: Settings) -> Iterator[Figure]:
    """Compare images of the same seeds: twice, in a batch and alone, and with `exact`."""
    from clipguide import TextToImage

    generator, guide = (str(settings.folder(name)) for name in ("generator", "guide"))
    model = TextToImage(model=generator, clip=guide)
    count = min(PICTURES, settings.limit or PICTURES)

    def drawn(**options) -> np.ndarray:
        usual = {"method": "shortcut", "count": count, "seed": 0, "batch_size": count}
        return pixels(model(PROMPT, **{**usual, **options}))

    first, again = drawn(), drawn()
    single = np.concatenate([drawn(count=1, seed=i) for i in range(count)])
    exact = drawn(exact=True)
    off = np.abs(first.astype(int) - single)
    weights = settings.weights("generator", "guide")
    note = f"{torch.get_num_threads()} threads"
    yield figure("clipguide: same seed, same bits", equal_share(first, again), n=count,
                 weights=weights, note=note)
    yield figure("clipguide: batch against single, equal values", float((off == 0).mean()),
                 n=count, weights=weights, note=note)
    yield figure("clipguide: batch against single, largest difference", int(off.max()), n=count,
                 weights=weights, note=note)
    yield figure("clipguide: exact, same bits", equal_share(exact, single), n=count,
                 weights=weights, note=note)


def pixels(pictures: Sequence) -> np.ndarray:
    """Return the pixels as uint8 (B, H, W, 3)."""
    return np.stack([np.asarray(picture.image) for picture in pictures])


def equal_share(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of images that are equal in every value."""
    return float((a == b).reshape(len(a), -1).all(1).mean())
