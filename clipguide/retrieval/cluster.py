"""Find or start Ray, divide the cluster among actors, and turn its errors into one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from ..engine import processors
from ..errors import ClipguideError, UsageError, reason
from ..prompts import shorten
from .store import Store

AT_ONCE = 2  # blocks per actor
DEATHS = 2  # deaths of actors during a block before it is halved
OBJECTS = 200_000_000  # bytes of Ray's store on one machine; only names pass through it


def share(
    ray: Any, *, workers: int | None, threads: int | None, device: str | None
) -> SimpleNamespace:
    """Return the number of actors, and the processors, GPUs and device of each. By default, as many
    actors as fit now. Raise UsageError if none fits."""
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
    """Connect to a running Ray, or to $RAY_ADDRESS, or start Ray on this machine."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            cpus = max(processors(), (workers or 1) * (threads or 1))
            alone = {"num_cpus": cpus, "object_store_memory": OBJECTS}
            ray.init(address="local", include_dashboard=False, **alone, **quiet)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise ClipguideError(f"Ray cannot be reached or started: {reason(error)}.") from error
    try:
        yield
    finally:
        ray.shutdown()


class Block:
    """The work of one actor, and the number of actors that died during it."""

    def __init__(self, works: list, deaths: int = 0) -> None:
        self.works, self.deaths = works, deaths

    def after_a_death(self) -> list[Block]:
        """Return the next attempt: first the same block again, because a machine may be lost; then
        its halves, until one file is left. Return None for that file: it is not tried again."""
        deaths = self.deaths + 1
        if deaths < DEATHS:
            return [Block(self.works, deaths)]
        half = len(self.works) // 2
        halves = (self.works[:half], self.works[half:]) if half else ()
        return [Block(works, deaths - 1) for works in halves]


class Crew:
    """Actors that work through blocks as they come.

    Each actor has two blocks, so that it does not wait for the driver. `make` starts an actor with
    the methods `ready` and `embed`. An actor that dies is replaced. Only the blocks in progress are
    in memory.

    Raises:
        ClipguideError: actors die repeatedly before they are ready.
    """

    def __init__(self, ray: Any, make: Callable[[], Any], count: int) -> None:
        self.ray, self.make = ray, make
        self.work: dict[Any, deque[tuple[Any, Block]]] = {}  # for each actor: tasks and blocks
        self.starting = {actor.ready.remote(): actor for actor in (make() for _ in range(count))}
        self.most_stillborn = 3 * count
        self.stillborn = 0

    def run(self, blocks: Iterable[list]) -> Iterator[tuple[list, Any]]:
        """Yield the items of each block and the result of `embed`. The result is None for a file
        that kills actors."""
        new, again = (Block(works) for works in blocks), deque()
        while True:
            for actor, tasks in self.work.items():
                while len(tasks) < AT_ONCE and (block := self._next(again, new)):
                    tasks.append((actor.embed.remote(block.works), block))
            tasks = [task for of in self.work.values() for task, _ in of]
            if self.work and not tasks:
                return
            done, _ = self.ray.wait([*self.starting, *tasks], num_returns=1)
            if done[0] in self.starting:
                self._started(done[0])
                continue
            yield from self._finished(done[0], again)

    def close(self) -> None:
        """Stop the actors."""
        for actor in [*self.work, *self.starting.values()]:
            self.ray.kill(actor)

    def _next(self, again: deque[Block], new: Iterator[Block]) -> Block | None:
        return again.popleft() if again else next(new, None)

    def _start(self) -> None:
        actor = self.make()
        self.starting[actor.ready.remote()] = actor

    def _started(self, task: Any) -> None:
        actor = self.starting.pop(task)
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayActorError:
            self.stillborn += 1
            if self.stillborn > self.most_stillborn:
                raise
            self._start()
        else:
            self.work[actor] = deque()

    def _finished(self, task: Any, again: deque[Block]) -> Iterator[tuple[list, Any]]:
        actor = next(a for a, tasks in self.work.items() if any(task == t for t, _ in tasks))
        tasks = self.work[actor]
        try:
            report = self.ray.get(task)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError):
            del self.work[actor]
            self._start()
            _, first = tasks.popleft()  # tasks run in order, so this one killed it
            again.extend(block for _, block in tasks)
            if rest := first.after_a_death():
                again.extend(rest)
            else:
                yield first.works, None
            return
        (block,) = [block for t, block in tasks if t == task]
        self.work[actor] = deque(pair for pair in tasks if pair[0] != task)
        yield block.works, report


@contextlib.contextmanager
def explained(store: Store) -> Iterator[None]:
    """Turn an error of Ray into one sentence. An error of a worker keeps its own words."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ClipguideError):
            raise type(cause)(str(cause)) from None
        lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        words = shorten(lines[-1].strip() if lines else type(error).__name__, 200).rstrip(".")
        raise ClipguideError(
            f"Ray gave up ({words}). What was committed to the index {store.path} is kept: repeat "
            "the command when the cause is gone."
        ) from error


def modules() -> Any:
    """Return Ray. Raise UsageError if it or a required package is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import fsspec  # noqa: F401
        import lance  # noqa: F401
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray needs {error.name}, which is not installed: pip install "
            "'clipguide[ray]'."
        ) from None
    return ray
