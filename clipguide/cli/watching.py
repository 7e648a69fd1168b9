"""What there is to watch of a run beside its images: a live grid of them, and an animation."""

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

MOST = 64  # images in one grid
SIDE = 1024  # pixels to a side of a grid, or a little more


def columns(number: int) -> int:
    """Of a grid that is about square."""
    return math.ceil(math.sqrt(number))


def live_grid(finished: Sequence[Picture], step: Step | None, *, total: int) -> dict[str, Any]:
    """The latest images of a run of `total`, finished ones first and then those being drawn, and
    white where others are to come: images, labels and columns of a contact sheet."""
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
    """The animation of a run's images side by side, a frame a step: claimed before the run.

    UsageError if `path` is no animation's, is there already and not `force`, or cannot be written.
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
        """The next image, with its frames; it stands still without."""
        self.add_frames(picture.frames or (picture.image,))

    def shrunk(self, frame: Image.Image) -> Image.Image:
        """A frame as it is shown."""
        return _within(frame, SIDE // self._columns)

    def add_frames(self, frames: Sequence[Image.Image]) -> None:
        """The next image as it came about."""
        self._rolls.append([self.shrunk(frame) for frame in frames])

    def write(self) -> None:
        """Write the animation of the images that were added."""
        from ..animation import write
        from ..images import contact_sheet

        frames = []
        for k in range(max(map(len, self._rolls))):
            cells = [roll[min(k, len(roll) - 1)] for roll in self._rolls]
            alone = len(cells) == 1
            frames.append(cells[0] if alone else contact_sheet(cells, columns=self._columns))
        write(frames, self.path, overwrite=self._force)


def _within(picture: Image.Image, side: int) -> Image.Image:
    """The image, made smaller if a side is longer than `side`."""
    from PIL import ImageOps

    return picture if max(picture.size) <= side else ImageOps.contain(picture, (side, side))
