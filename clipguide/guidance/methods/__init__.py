"""The steering methods, one file for each, and their table."""

from __future__ import annotations

import dataclasses
import inspect

from ...errors import UsageError, close_matches
from ...registry import Registry
from ..contract import Method
from .backprop import Backprop
from .best_of import BestOf
from .drafts import Drafts
from .embedding import Embedding
from .lookahead import Lookahead
from .noise import Noise
from .particles import Particles
from .rollover import Rollover
from .shortcut import Shortcut

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        method.name: method
        for method in (
            BestOf, Shortcut, Particles, Rollover, Lookahead, Noise, Backprop, Embedding,
            Drafts,
        )  # fmt: skip
    },
)


def register(method: type[Method], *, replace: bool = False) -> type[Method]:
    """Register a method under its `name`. It also works as a decorator of the class.

    Args:
        method: a frozen dataclass, a subclass of `Method` with a `name`.
        replace: whether it may replace a method of the same name.

    Raises:
        UsageError: it is not such a class, or the name is taken.
    """
    good = inspect.isclass(method) and issubclass(method, Method)
    if not (good and dataclasses.is_dataclass(method) and isinstance(method.name, str)):
        raise UsageError(
            f"A method is a dataclass, a subclass of Method with a name, not {method!r}."
        )
    return METHODS.register(method.name, method, replace=replace)


def configure(method: str | type[Method] | Method, options: dict[str, object]) -> Method:
    """Return a method, from its name or class and its options. An option that is None has the
    default of the method.

    Raises:
        UsageError: the name or an option is unknown. The message has close matches.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(method, Method):
        if given:
            raise UsageError(f"{method.name} is configured already: set {', '.join(given)} in it.")
        return method
    if inspect.isclass(method) and issubclass(method, Method):
        kind = method
    elif isinstance(method, str):
        kind = METHODS.find(method)
    else:
        raise UsageError(
            f"A method is a name, {', '.join(METHODS)}, or configured, as Shortcut(strength=0.2), "
            f"not {method!r}."
        )
    fields = [f.name for f in dataclasses.fields(kind)]
    for key in given:
        if key not in fields:
            near = close_matches(key, fields)
            raise UsageError(f"{kind.name} has no option {key}.{near}")
    return kind(**given)
