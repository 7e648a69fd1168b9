"""Seconds and bytes of this process, or of CUDA."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch


def now(device: str) -> torch.Tensor:
    """A moment_2."""
    if device == "cuda":
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def forget_peak(device: str) -> None:
    """The peak begins anew, where that can be said."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (found := Path("/proc/self/clear_refs")).exists():
        found.write_text("5")


def peak(device: str) -> float:
    """MiB at most, since it was forgotten."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if Path("/proc/self/status").exists():
        return resident("VmHWM") / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def resident(line: str = "VmRSS") -> int:
    """Bytes of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[line].split()[0]) * 1024
