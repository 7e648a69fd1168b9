"""The errors and warnings, with messages for the person who can fix the cause.

The library raises these. Only `clipguide.cli` prints them and exits (`UsageError` with 2, others
with 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class ClipguideError(Exception):
    """Something failed. The message says what is wrong and what to do next."""


class UsageError(ClipguideError):
    """The request cannot be carried out as given. The message says what to change."""


class ClipguideWarning(UserWarning):
    """Something was not done as asked: a text was cut, an option had no effect."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, on any device, means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = ("can't allocate memory", "not enough memory")  # message of the CPU's allocator
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


HUB = {  # errors of the hub's library, by name, so that it is not imported for this
    "GatedRepoError": "its owners ask for consent: give it on the model's page on the hub, then "
    "log in with `hf auth login`",
    "RepositoryNotFoundError": "the hub has no model of that name, or it is private: correct the "
    "name, or log in with `hf auth login`",
    "OfflineModeIsEnabled": "it is not in the cache, and HF_HUB_OFFLINE keeps it from being "
    "downloaded: unset that, or name a folder",
    "ConnectError": "it is not in the cache, and the hub cannot be reached: connect, or name a "
    "folder",
    "ConnectTimeout": "it is not in the cache, and the hub does not answer: try again later, or "
    "name a folder",
}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """Return why a model does not load, without a full stop: the message of the hub, or the
    shortened message of the error."""
    for cause in causes(error):
        if said := HUB.get(type(cause).__name__):
            return said
    words = " ".join(str(error).split())
    return (words if len(words) <= 200 else words[:200] + "…").rstrip(".")


def close_matches(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean a or b?' with the known names that are most similar to `name`, or all
    known names if none is similar.

    The text starts with a blank, because it follows the sentence that says that the name is
    unknown.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known: {', '.join(known)}." if known else ""
