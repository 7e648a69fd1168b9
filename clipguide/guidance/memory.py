"""How much memory a decoder may take."""

from __future__ import annotations

import math
from pathlib import Path

import torch

GIB = 2**30
DEFAULT = 4.0  # GiB, so that machines that have it all decide alike
SHARE = 0.8  # of what is free


def limit(device: torch.device) -> float:
    """Return GiB: the default, or what is to be had of what is free on the device where that is
    less."""
    return min(DEFAULT, SHARE * _free(device) / GIB)


def _free(device: torch.device) -> float:
    """Bytes; infinite where nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu" and (found := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":") for line in found.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return math.inf
