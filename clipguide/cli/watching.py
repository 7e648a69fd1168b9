"""Show a run while it draws: a grid of its images, and an animation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ClipguideError, UsageError
from ..prompts import shorten
from . import naming

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.picture import Picture
    from ..pipelines.text_to_image import Step

MOST = 64  # largest number of images in a grid
SIDE = 1024  # approximate side of a grid, in pixels


def columns(number: int) -> int:
    """Return the number of columns of a grid that is about square."""
    return math.ceil(math.sqrt(number))


def live_grid(finished: Sequence[Picture], step: Step | None, *, total: int) -> dict[str, Any]:
    """Return the images, labels and columns of a contact sheet of a run of `total` images: the
    finished ones, then those being drawn, then white ones."""
    from PIL import Image

    from ..images import to_pil

    drawing = [] if step is None else to_pil(step.preview())[:MOST]
    finished = finished[max(0, len(finished) + len(drawing) - MOST) :]
    labels = [f"{picture.seed} {shorten(picture.recipe.prompt)}" for picture in finished]
    labels += [f"step {step.index + 1} of {step.total}" for _ in drawing]
    pictures = [picture.image for picture in finished] + drawing
    to_come = max(0, min(total, MOST) - len(pictures))
    pictures += [Image.new("RGB", pictures[0].size, "white")] * to_come
    across = columns(len(pictures))
    return {
        "pictures": [_within(picture, SIDE // across) for picture in pictures],
        "labels": labels + [""] * to_come,
        "columns": across,
    }


class Reel:
    """The animation of a run's images side by side, one frame per step. Its file is claimed before
    the run.

    Raises:
        UsageError: `path` is not an animation, exists without `force`, or cannot be written.
    """

    def __init__(self, path: Path, pictures: int, *, force: bool) -> None:
        from ..animation import check

        check(path)
        if pictures > MOST:
            raise UsageError(f"An animation shows up to {MOST} images, not {pictures}: draw fewer.")
        try:
            naming.claim([path], force=force)
        except ClipguideError as error:
            raise UsageError(str(error)) from None
        self.path, self._force, self._columns = path, force, columns(pictures)
        self._rolls: list[list[Image.Image]] = []

    def add(self, picture: Picture) -> None:
        """Add the next image, with its frames. Without frames it stands still."""
        self.add_frames(picture.frames or (picture.image,))

    def shrunk(self, frame: Image.Image) -> Image.Image:
        """Return a frame at the size of the animation."""
        return _within(frame, SIDE // self._columns)

    def add_frames(self, frames: Sequence[Image.Image]) -> None:
        """Add the next image with its intermediate images."""
        self._rolls.append([self.shrunk(frame) for frame in frames])

    def write(self) -> None:
        """Write the animation of the added images."""
        from ..animation import write
        from ..images import contact_sheet

        frames = []
        for k in range(max(map(len, self._rolls))):
            cells = [roll[min(k, len(roll) - 1)] for roll in self._rolls]
            alone = len(cells) == 1
            frames.append(cells[0] if alone else contact_sheet(cells, columns=self._columns))
        write(frames, self.path, overwrite=self._force)


def _within(picture: Image.Image, side: int) -> Image.Image:
    """Return the image, reduced if a side is longer than `side`."""
    from PIL import ImageOps

    return picture if max(picture.size) <= side else ImageOps.contain(picture, (side, side))
