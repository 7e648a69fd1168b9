"""Find the rows and columns of packed latents, which only the pipeline knows."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

import torch

from ..errors import ClipguideError


class Grid:
    """The rows and columns of patches of the latents of a pipeline.

    Args:
        pipe: the pipeline.
        told: whether its latents are packed. Their size then comes from the pipeline when it
            prepares them, or from `set_size`.
    """

    def __init__(self, pipe: object, *, told: bool) -> None:
        self._pipe, self._told = pipe, told
        self._size: tuple[int, int] | None = None
        self._undo: Callable[[], None] | None = None

    def watch(self) -> None:
        """Record the size for which the pipeline prepares its latents, until `forget`."""
        if self._told and self._size is None:
            self._undo = _watch(self._pipe, self.set_size)

    def set_size(self, height: int, width: int) -> None:
        """Set the size in pixels."""
        self._size = int(height), int(width)

    def forget(self) -> None:
        """Stop recording, and forget the size."""
        if self._undo is not None:
            self._undo()
        self._undo, self._size = None, None

    def of(self, x0_BLC: torch.Tensor) -> tuple[int, int] | None:
        """Return the rows and columns of L patches: those that the pipeline told, otherwise a
        square; None for latents that are not packed. Raise ClipguideError if L does not fit what
        was told."""
        if not self._told:
            return None
        length = x0_BLC.shape[1]
        for rows, columns in self._may_be(length):
            if rows * columns == length:
                return rows, columns
        raise ClipguideError(
            f"{type(self._pipe).__name__} did not say the height and width of its {length} "
            "patches: steer it through its own __call__."
        )

    def _may_be(self, length: int) -> list[tuple[int, int]]:
        """Return possible rows and columns for the recorded size. The scale of a pipeline is the
        side of a latent in pixels. In older pipelines, and some community ones, it is the side of a
        patch."""
        if self._size is None:
            return [(math.isqrt(length),) * 2]
        height, width = self._size
        scale = self._pipe.vae_scale_factor
        return [(height // side, width // side) for side in (2 * scale, scale)]


def _watch(pipe: object, set_size: Callable[[int, int], None]) -> Callable[[], None]:
    """Call `set_size` with the size for which the pipeline prepares latents. Return a function that
    undoes this."""
    if not hasattr(pipe, "prepare_latents"):
        raise ClipguideError(
            f"{type(pipe).__name__} does not say the height and width of its packed latents: put "
            "its blocks through clipguide.pipelines.modular.steered."
        )
    original, own = pipe.prepare_latents, pipe.__dict__.get("prepare_latents")
    signature = inspect.signature(original)

    @functools.wraps(original)
    def prepare_latents(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        set_size(given["height"], given["width"])
        return original(*args, **kwargs)

    def undo() -> None:
        del pipe.prepare_latents
        if own is not None:
            pipe.prepare_latents = own

    pipe.prepare_latents = prepare_latents
    return undo
