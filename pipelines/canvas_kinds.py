"""The table of canvases: their names, learning rates, and functions that make your own canvases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..canvases.base import Canvas
from ..registry import Registry


@dataclass(frozen=True)
class Kind:
    """A canvas and its defaults.

    Args:
        lr: the learning rate of Adam, as a fraction of the canvas's unit: the rms of a codebook, or
            1.
        model: whether a model decodes it.
        make: for a registered canvas, the function make(height, width, generators).
        side: the side of an image in pixels, if no size is given.
        grow: the number of sizes, if neither it nor a size is given.
        start: the first image by default: "light" or "own".
    """

    lr: float
    model: bool = False
    make: Callable[[int, int, Sequence[torch.Generator]], Canvas] | None = None
    side: int = 256
    grow: int = 1
    start: str = "light"


CANVASES: Registry[Kind] = Registry(
    "canvas",
    {
        "pixels": Kind(0.15),
        "fourier": Kind(0.15, start="own"),  # a light pixel has a flat slope, and changes slowly
        "vqgan": Kind(0.06, True, grow=2),
        "latent": Kind(0.1, True),
    },
)


def register_canvas(
    name: str,
    make: Callable[[int, int, Sequence[torch.Generator]], Canvas],
    *,
    lr: float = 0.15,
    replace: bool = False,
) -> Kind:
    """Register a canvas under a name.

    Args:
        name: the name for `TextToCanvas(name)` and `clipguide optimize --canvas`.
        make: takes height and width in pixels and one generator for each image, and returns a
            Canvas.
        lr: the learning rate of Adam that suits the canvas.
        replace: whether this entry may replace one of the same name.

    Raises:
        UsageError: the name is taken.
    """
    return CANVASES.register(name, Kind(lr, make=make), replace=replace)
