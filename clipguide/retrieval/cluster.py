"""Ray: found, started, shared out, and what it raises in one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from ..errors import ClipguideError, UsageError, reason
from ..prompts import shorten
from .store import Store

OBJECTS = 200_000_000  # bytes of Ray's store where it runs on one machine: only names pass it


def share(
    ray: Any, *, workers: int | None, threads: int | None, device: str | None
) -> SimpleNamespace:
    """How many actors, and the processors, GPUs and device of each: where it is not said, as many
    as fit now. UsageError if none does."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [(int(r.get("CPU", 0)), int(r.get("GPU", 0))) for r in there]
    device = device or ("cuda" if any(gpus for _, gpus in machines) else "cpu")
    on_gpu = device.startswith("cuda")
    if on_gpu:
        threads = threads or max(1, min((c // g for c, g in machines if g), default=1))
        fitting = sum(min(cpus // threads, gpus) for cpus, gpus in machines)
    else:
        threads = threads or 1
        fitting = sum(cpus // threads for cpus, _ in machines)
    if workers is None and not fitting:
        lacks = f"{threads} processors{' and a GPU' if on_gpu else ''}"
        raise UsageError(
            f"No machine of Ray's has {lacks} for a worker: see ray status, or say with --actors "
            "how many are to wait for one."
        )
    return SimpleNamespace(
        workers=workers or fitting, threads=threads, gpus=int(on_gpu), device=device
    )


@contextlib.contextmanager
def cluster(ray: Any, workers: int | None, threads: int | None) -> Iterator[None]:
    """Ray as it runs already, or that of $RAY_ADDRESS, or one on this machine alone."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            cpus = max(os.cpu_count() or 1, (workers or 1) * (threads or 1))
            alone = {"num_cpus": cpus, "object_store_memory": OBJECTS}
            ray.init(address="local", include_dashboard=False, **alone, **quiet)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise ClipguideError(f"Ray cannot be reached or started: {reason(error)}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def ledger(ray: Any, known: Any, retries: int) -> Any:
    """An actor that lends what is `known`, and counts how often each block was begun, by the first
    of its names: `deaths` begins it, and is 0, or how often it ended in a death if that is too
    often."""

    class Ledger:  # in here it travels by its text, and imports no torch
        def __init__(self, known: list) -> None:
            self.lent, self.begun = known, {}

        def known(self) -> list:
            return self.lent

        def deaths(self, first: str) -> int:
            before = self.begun.get(first, 0)
            self.begun[first] = before + 1
            return before if before > retries else 0

    return ray.remote(num_cpus=0)(Ledger).remote([ray.put(known)])


@contextlib.contextmanager
def told(store: Store) -> Iterator[None]:
    """Turn what Ray raises into one sentence."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield
    except ray.exceptions.RayError as error:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        words = shorten(lines[-1].strip() if lines else type(error).__name__, 200).rstrip(".")
        raise ClipguideError(
            f"Ray gave up ({words}). What was committed to the index {store.path} is kept: repeat "
            "the command when the cause is gone."
        ) from error


def modules() -> Any:
    """Ray, with its data. UsageError where it or a companion is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import fsspec  # noqa: F401
        import lance_ray  # noqa: F401
        import ray.data
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray needs {error.name}, which is not installed: pip install "
            "'clipguide[ray]'."
        ) from None
    return ray
