"""What this program may use of the machine: processors, memory, and a budget of memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/")
LEAST = 512 << 20  # smallest budget in bytes
SHARE = 4  # a budget is the free memory divided by this


def processors(root: Path = ROOT) -> int:
    """Return the number of processors that this program may use: within its affinity and its
    control group, and at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [float(bound or 1)]
    for folder in _groups(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            found.append(int(words[0]) / int(words[1]))
        quota, period = (_read(folder / f"cpu.cfs_{what}_us") for what in ("quota", "period"))
        if quota and period and int(quota) > 0:
            found.append(int(quota) / int(period))
    return max(1, int(min(found)))


def memory(root: Path = ROOT) -> int | None:
    """Return the bytes of memory that are free for this program, or None if it is unknown."""
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for folder in _groups(root, "memory"):
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, now = _read(folder / most), _read(folder / used)
            if limit.isdecimal() and now.isdecimal():
                found.append(max(0, int(limit) - int(now)))
    return min(found, default=None)


class Budget:
    """Memory that threads share. A thread waits until its part is free. A part larger than the
    budget is given to one thread alone."""

    def __init__(self, bytes: int | None = None) -> None:
        free = memory() or 0
        self.bytes = bytes or max(LEAST, free // SHARE)
        self._left, self._there = self.bytes, threading.Condition()

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Return a lease on a part of unknown size, which is returned at its end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self._give(lease.taken)

    def _take(self, count: int) -> int:
        count = min(count, self.bytes)
        with self._there:
            self._there.wait_for(lambda: self._left >= count)
            self._left -= count
        return count

    def _give(self, count: int) -> None:
        with self._there:
            self._left += count
            self._there.notify_all()


class Lease:
    """A thread's part of a budget. It is taken once."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.taken = budget, 0

    def take(self, count: int) -> None:
        """Wait until this number of bytes is free, and take it."""
        if not self.taken:
            self.taken = self._budget._take(count)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Return the folders of the control group of this program and of the groups above it, version 2
    or 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, place = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        home = root / "sys/fs/cgroup" / (controller if names else "")
        for part in (place, *map(str, Path(place).parents)):
            yield home / part.lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
