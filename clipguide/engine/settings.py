"""What an Engine's settings must be, checked without anything heavy: before a model loads."""

from __future__ import annotations

from ..errors import UsageError
from ..transparency import check_alpha


def check(
    *,
    batch: int | None,
    workers: int | None,
    frames: int,
    alpha: str,
    megapixels: float | None = None,
) -> None:
    """UsageError for settings that make no sense."""
    for name, value in {"batch": batch, "workers": workers, "frames": frames}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    if megapixels is not None and not megapixels > 0:
        raise UsageError(f"megapixels must be above 0, not {megapixels:g}.")
    check_alpha(alpha)
