"""Parse the values of options, and check numbers."""

from __future__ import annotations

import re

from ..errors import UsageError

MAX_PICTURES = 1000


def check_run(number: int, *, preview: int, resume: bool, seed: int | None) -> None:
    """Raise UsageError if the number of images or of steps between previews is out of range, or if
    --resume has no --seed."""
    if not 1 <= number <= MAX_PICTURES:
        raise UsageError(f"A run draws 1 to {MAX_PICTURES} images, not {number}.")
    if preview < 0:
        raise UsageError(f"--preview takes a number of steps, or 0 for none, not {preview}.")
    if resume and seed is None:
        raise UsageError("--resume needs the seed of the run: give it, such as --seed 1.")


def pixels(size: str | None) -> int | tuple[int, int] | None:
    """Parse '128' or '128x96'. Return None for None. Raise UsageError for any other text."""
    if size is None:
        return None
    sides = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", size)
    if not sides:
        raise UsageError(
            f"--size is a side in pixels, or width x height as in 512x768, not {size!r}."
        )
    return int(sides[1]) if sides[2] is None else (int(sides[1]), int(sides[2]))


def turns(texts: list[str]) -> tuple[tuple[int, str], ...]:
    """Return the steps and prompts of --prompt-at."""
    found = []
    for text in texts:
        parts = re.fullmatch(r"\s*(\d{1,9})\s*:(.+)", text, re.DOTALL)
        if not parts:
            raise UsageError(f"--prompt-at is a step and a prompt, as 200:'a tree', not {text!r}.")
        found.append((int(parts[1]), parts[2].strip()))
    return tuple(found)


def sides(size: str | None) -> tuple[int, int] | None:
    """Return '128' or '128x96' as width and height, or None. Raise UsageError for any other text.
    """
    found = pixels(size)
    return (found, found) if isinstance(found, int) else found


def shift(text: str | None) -> tuple[float, float] | None:
    """Return '2,-1' as pixels to the right and down, or None. Raise UsageError for any other text.
    """
    if text is None:
        return None
    try:
        right, down = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shift takes pixels right and down, as 2,-1, not {text!r}.") from None
    return right, down


def best_device() -> str:
    """Return the device on which torch is fastest on this machine."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
