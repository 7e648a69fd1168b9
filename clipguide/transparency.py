"""What becomes of transparency: known without Pillow, so that a wrong word is told at once."""

from __future__ import annotations

from .errors import UsageError

ALPHA = ("white", "drop")  # laid on white, or left out


def check_alpha(alpha: str) -> None:
    """UsageError for what is not one of ALPHA."""
    if alpha not in ALPHA:
        raise UsageError(f"alpha is {' or '.join(ALPHA)}, not {alpha!r}.")
