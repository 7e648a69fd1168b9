"""The memory limit of a decoder."""

from __future__ import annotations

import math
from pathlib import Path

import torch

GIB = 2**30
DEFAULT = 4.0  # GiB; fixed, so that large machines decide alike
SHARE = 0.8  # share of the free memory


def limit(device: torch.device) -> float:
    """Return the limit in GiB: the default, or a share of the free memory of the device if that is
    less."""
    return min(DEFAULT, SHARE * _free(device) / GIB)


def _free(device: torch.device) -> float:
    """Return the free bytes; infinite if they are unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu" and (found := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":") for line in found.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return math.inf
