"""Check the arguments of an Engine before a model loads, without slow imports."""

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
    """Raise UsageError for impossible arguments."""
    for name, value in {"batch": batch, "workers": workers, "frames": frames}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    if megapixels is not None and not megapixels > 0:
        raise UsageError(f"megapixels must be above 0, not {megapixels:g}.")
    check_alpha(alpha)
