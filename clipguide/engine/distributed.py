"""Run one engine in each of the processes that `accelerate launch` started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from .engine import AHEAD, Embedded, Engine

if TYPE_CHECKING:
    from accelerate import PartialState


def processes() -> PartialState | None:
    """Return accelerate's state of the processes that `accelerate launch` started, or None in a
    single process.

    The process group that it begins ends before the interpreter. Otherwise its threads would use
    freed objects, and the process would abort.
    """
    if "LOCAL_RANK" not in os.environ:
        return None
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from torch import distributed

    begun = distributed.is_initialized()  # another caller began it, and must end it
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if distributed.is_initialized() and not begun:
        atexit.register(_leave)
    return state if state.num_processes > 1 else None


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def shared(engine: Engine, paths: Iterable[str | os.PathLike]) -> Iterator[Embedded]:
    """Embed with all processes that `accelerate launch` started. Each gets all vectors. In a single
    process, it is `engine.embed`."""
    state = processes()
    if state is None:
        yield from engine.embed(paths)
        return
    from accelerate.utils import gather_object

    paths = iter(paths)
    while chunk := list(islice(paths, AHEAD * engine.batch * state.num_processes)):
        mine = list(engine.embed(chunk[state.process_index :: state.num_processes]))
        by_rank = gather_object([mine])
        for i in range(len(chunk)):
            yield by_rank[i % state.num_processes][i // state.num_processes]
    state.wait_for_everyone()  # no process leaves while another still receives
