"""What LanceDB raises, told apart: a store that cannot be reached, a commit that another was
quicker with, files of a version that is gone, a disk that is full, files that are not whole.

Only the last of these, and files that the newest version lacks, are damage.
"""

from __future__ import annotations

import re

from ..prompts import shorten

RAISED = (OSError, RuntimeError, ValueError)  # what LanceDB's calls raise
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
    """The first of PATTERNS that an error's words have; None for one of no known kind."""
    words = str(error)
    return next((kind for kind, rule in PATTERNS.items() if re.search(rule, words, re.I)), None)


def reason(error: BaseException) -> str:
    """What LanceDB said, without its source files, types and full stop."""
    words = str(error)
    if deeper := re.search(r'message: "([^"]+)"', words):
        words = deeper[1]
    words = re.sub(r",? ?(?:\S*/)?(?:registry|rust\w*|lance\S*)/\S+\.rs:\d+(?::\d+)?", "", words)
    words = re.sub(r"^(?:[A-Za-z]+ error|Invalid input|Invalid user input)[:,] ", "", words)
    return shorten(" ".join(words.split()) or type(error).__name__, 200).rstrip(".,: ")
