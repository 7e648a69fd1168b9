"""One engine in each of the processes that `accelerate launch` started."""

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
    """accelerate's account of the processes that `accelerate launch` started; None in one alone.

    The group of processes that this begins is ended when the program leaves, before the interpreter
    does: its threads would otherwise outlive what they use, and the process abort.
    """
    if "LOCAL_RANK" not in os.environ:
        return None
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from torch import distributed

    begun = distributed.is_initialized()  # by somebody else, who is to end it
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if distributed.is_initialized() and not begun:
        atexit.register(_leave)
    return state if state.num_processes > 1 else None


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def shared(engine: Engine, paths: Iterable[str | os.PathLike]) -> Iterator[Embedded]:
    """As `engine.embed`, by all processes that `accelerate launch` started, each of which gets all
    of the vectors; as `engine.embed` itself in a process alone."""
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
    state.wait_for_everyone()  # none leaves while another still receives
