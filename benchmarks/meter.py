"""Seconds and bytes of this process, or of CUDA."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch


def now(device: str) -> torch.Tensor:
    """Return the present moment_2."""
    if device == "cuda":
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def forget_peak(device: str) -> None:
    """Reset the peak, where that is possible."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (found := Path("/proc/self/clear_refs")).exists():
        found.write_text("5")


def peak(device: str) -> float:
    """Return the peak memory in MiB since `forget_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if Path("/proc/self/status").exists():
        return resident("VmHWM") / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def resident(line: str = "VmRSS") -> int:
    """Return the resident memory of this process in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[line].split()[0]) * 1024
