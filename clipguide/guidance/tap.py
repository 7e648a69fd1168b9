"""Tap a pipeline's scheduler: each of its steps first goes through a function.

For a while, the pipeline has a view of its scheduler: an object of a new class that shares all
state with the scheduler, and whose `step` and `set_timesteps` are tapped. If several pipelines
share the scheduler, only this one is steered. A copy that is made meanwhile, shallow or deep, is an
ordinary scheduler.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
from collections.abc import Callable, Iterator

from ..errors import ClipguideError


class Tapped:
    """A mark on the class of a view."""


def kind(scheduler: object) -> type:
    """Return the class of a scheduler, which may be tapped."""
    return next(base for base in type(scheduler).__mro__ if not issubclass(base, Tapped))


@contextlib.contextmanager
def tap(
    pipe: object,
    *,
    on_timesteps: Callable[[object], None],
    on_step: Callable[..., object],
) -> Iterator[object]:
    """Tap the scheduler of a pipeline.

    Args:
        pipe: an object with a `scheduler`.
        on_timesteps: called with the view after each `set_timesteps`.
        on_step: called in place of `step`, with the original step before its arguments.

    Yields:
        The view, which is `pipe.scheduler` until the context ends.

    Raises:
        ClipguideError: the scheduler is tapped already.
    """
    scheduler, own = pipe.scheduler, "scheduler" in vars(pipe)
    if isinstance(scheduler, Tapped):
        raise ClipguideError("This pipeline is steered already: leave that context first.")
    view = _view(scheduler, on_timesteps, on_step)
    object.__setattr__(pipe, "scheduler", view)  # not pipe's own, which writes its config anew
    try:
        yield view
    finally:
        if pipe.scheduler is view:
            if own:
                object.__setattr__(pipe, "scheduler", scheduler)
            else:
                object.__delattr__(pipe, "scheduler")


def _view(
    scheduler: object, on_timesteps: Callable[[object], None], on_step: Callable[..., object]
) -> object:
    base = type(scheduler)

    def original(name: str) -> Callable:
        """Return the method of the scheduler, or its replacement."""
        return vars(view).get(name) or getattr(base, name).__get__(view)

    def tapped_step() -> Callable:
        step = original("step")

        @functools.wraps(step)  # pipelines look at its signature
        def tapped(*args, **kwargs):
            return on_step(step, *args, **kwargs)

        return tapped

    def tapped_timesteps() -> Callable:
        set_timesteps = original("set_timesteps")

        @functools.wraps(set_timesteps)
        def tapped(*args, **kwargs):
            set_timesteps(*args, **kwargs)
            on_timesteps(view)

        return tapped

    def reduced(self: object, protocol: int) -> object:
        """Make a copy that is of the scheduler's own class."""
        made = super(kind, self).__reduce_ex__(protocol)
        if isinstance(made, tuple) and made[0] is copyreg.__newobj__:
            return (_empty, (base,), *made[2:])
        return made

    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__reduce_ex__": reduced,
        "step": _replaceable(tapped_step),
        "set_timesteps": _replaceable(tapped_timesteps),
    }
    kind = type(base.__name__, (base, Tapped), members)
    view = object.__new__(kind)
    view.__dict__ = vars(scheduler)
    return view


def _empty(kind: type) -> object:
    """Return an object without attributes, which a copy fills."""
    return object.__new__(kind)


def _replaceable(make: Callable[[], Callable]) -> property:
    """Return an attribute of a class that takes precedence over that of the instance. A value that
    is set in its place holds until it is deleted."""
    replaced: list[Callable] = []

    def get(self: object) -> Callable:
        return replaced[-1] if replaced else make()

    def put(self: object, value: Callable) -> None:
        replaced[:] = [value]

    def delete(self: object) -> None:
        if not replaced:
            raise AttributeError("step")
        replaced.clear()

    return property(get, put, delete)
