"""The errors of LanceDB, by kind: an unreachable store, a commit conflict, files of an old version,
a full disk, incomplete files.

Only incomplete files, and missing files of the newest version, are damage.
"""

from __future__ import annotations

import os
import re

from ..errors import ClipguideError
from ..prompts import shorten
from .places import is_url

RAISED = (OSError, RuntimeError, ValueError)  # errors that LanceDB raises
PATTERNS = {
    "conflict": r"commit conflict|conflicting|concurrent|already exists|retryable|too many retries",
    "full": r"read-only|no space|quota|disk full",
    "denied": r"permission denied|access ?denied|forbidden|unauthori[sz]ed|credential",
    "damaged": r"fill whole buffer|sufficient data|invalid magic|magic number|protobuf|corrupt"
    r"|checksum|unexpected eof|unexpected end|failed to decode",
    "gone": r"not found: \S*/\S|no such file|nosuchkey|object at location|table \S+ was not found",
    "away": r"connect|timed? ?out|\bdns\b|lookup address|refused|unreachable|reset by|no route"
    r"|sending request|stale file handle|input/output error|transport endpoint|host is down"
    r"|status: 50\d|retryerror",
}


def kind(error: BaseException) -> str | None:
    """Return the first entry of PATTERNS that matches an error, or None."""
    words = str(error)
    return next((kind for kind, rule in PATTERNS.items() if re.search(rule, words, re.I)), None)


def reason(error: BaseException) -> str:
    """Return the message of LanceDB without source files, types and full stop."""
    words = str(error)
    if deeper := re.search(r'message: "([^"]+)"', words):
        words = deeper[1]
    words = re.sub(r",? ?(?:\S*/)?(?:registry|rust\w*|lance\S*)/\S+\.rs:\d+(?::\d+)?", "", words)
    words = re.sub(r"^(?:[A-Za-z]+ error|Invalid input|Invalid user input)[:,] ", "", words)
    return shorten(" ".join(words.split()) or type(error).__name__, 200).rstrip(".,: ")


def explained(
    path: str, error: BaseException, *, writing: bool = False, newest: bool = False
) -> ClipguideError:
    """Return an error of LanceDB about the index at `path` as a sentence that says what to do.
    `newest` says that the error is about the newest version, which no compaction has removed."""
    why, words, is_gone = kind(error), reason(error), is_away(path)
    if writing and why in ("full", "denied"):
        return ClipguideError(
            f"The index {path} cannot be written ({words}): free some space, or choose another "
            "--db. What was committed is kept."
        )
    if why == "conflict":
        return ClipguideError(
            f"Other programs write to the index {path} all the time ({words}): repeat the command "
            "when they are done. What was committed is kept."
        )
    if not is_gone and (why == "damaged" or (why == "gone" and newest)):
        return damaged(path, words)
    can = "reached" if is_gone or why in ("away", "denied") else "used"
    return ClipguideError(
        f"The index {path} cannot be {can} ({words}): repeat the command when it can. Nothing in "
        "it has changed."
    )


def damaged(path: str, words: str) -> ClipguideError:
    """Return the error for an index that is proved to be damaged."""
    place = "that place" if is_url(path) else "that folder"
    return ClipguideError(
        f"The index {path} is damaged ({words}): move {place} away, and index the images again."
    )


def is_away(path: str) -> bool:
    """Return whether the folder of an index is missing."""
    return not is_url(path) and not os.path.isdir(path)
