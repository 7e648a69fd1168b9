"""The sizes of images that a generator draws."""

from __future__ import annotations

from .errors import UsageError


def check_size(name: str, sides: tuple[int, int], *, native: int, grain: int) -> None:
    """Raise UsageError if a generator cannot draw images of this size.

    Args:
        name: the name of the generator.
        sides: width and height in pixels.
        native: the side that the generator was trained at, in pixels.
        grain: the number that a side must be a multiple of, in pixels.
    """
    least, most = max(grain, native // 2), native * 2
    if any(side % grain or not least <= side <= most for side in sides):
        raise UsageError(
            f"{name} does not draw {sides[0]}x{sides[1]}: a side is a multiple of {grain} pixels "
            f"from {least} to {most}; {native} is best."
        )
