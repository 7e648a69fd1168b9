"""The options for transparency. This imports nothing slow, so that a wrong option is reported at
once."""

from __future__ import annotations

from .errors import UsageError

ALPHA = ("white", "drop")  # laid on white, or left out


def check_alpha(alpha: str) -> None:
    """Raise UsageError for a value that is not in ALPHA."""
    if alpha not in ALPHA:
        raise UsageError(f"alpha is {' or '.join(ALPHA)}, not {alpha!r}.")
