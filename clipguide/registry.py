"""Tables that other packages can add to.

A plug-in is a package that names a module under the entry point group `clipguide`:

    [project.entry-points.clipguide]
    sparkle = "clipguide_sparkle"

The module is imported when a table is first asked, and calls `register_method`, `register_family`
and their like. In a script the same functions are called by hand.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from typing import TypeVar

from .errors import ClipguideWarning, UsageError, close_matches, reason

GROUP = "clipguide"
T = TypeVar("T")
ADDED: set[tuple[str, str]] = set()  # (kind, name) of the entries that this process registered


class Registry(Mapping[str, T]):
    """A table of names to which packages add. Reading it loads the plug-ins.

    Args:
        kind: what an entry is, in the singular, such as "method".
        entries: the initial entries.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind, self._entries = kind, dict(entries or {})

    def register(self, name: str, entry: T, *, replace: bool = False) -> T:
        """Add an entry. Raise UsageError if the name is taken and `replace` is not set."""
        if name in self._entries and not replace:
            raise UsageError(
                f"There is a {self.kind} {name!r} already: choose another name, or set "
                "`replace`."
            )
        self._entries[name] = entry
        ADDED.add((self.kind, name))
        return entry

    def unregister(self, name: str) -> None:
        """Remove an entry. Raise UsageError if there is none."""
        self.find(name)
        del self._entries[name]
        ADDED.discard((self.kind, name))

    def find(self, name: str) -> T:
        """Return an entry. Raise UsageError, with close matches, if there is none."""
        if name not in self:
            raise UsageError(f"There is no {self.kind} {name!r}.{close_matches(str(name), self)}")
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        load_plugins()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(list(self._entries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self._entries)})"


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import the module of each installed plug-in, once. Return their names. Warn of one that
    cannot be imported, and leave it out."""
    loaded = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # another author's package can raise any error
            warnings.warn(
                f"The plug-in {point.name} cannot be imported and is left out: {reason(error)}.",
                ClipguideWarning,
                stacklevel=3,
            )
        else:
            loaded.append(point.name)
    return tuple(loaded)


def of_class(table: Mapping[str, T], thing: object) -> T | None:
    """Return the entry of an object's class, or of its nearest base class, or None."""
    found = (table[base.__name__] for base in type(thing).__mro__ if base.__name__ in table)
    return next(found, None)

