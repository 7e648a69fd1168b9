"""Save the state of a loop next to its image, so that a stopped run continues with identical
results."""

from __future__ import annotations

import dataclasses
import io
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClipguideError, ClipguideWarning, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.canvas_run import Run

SECONDS = 2.0  # seconds between states: a stop loses little, and saving costs little
STATE = "state.pt"


class Unfinished:
    """The saved state of a run in `folder`, written every two seconds, and the frames of its video.

    `frames` are the frames up to the state.

    Raises:
        UsageError: the state is of a run with other settings, and `force` is not set.
    """

    def __init__(self, folder: Path, run: Run, *, force: bool, video: bool) -> None:
        self.folder, self._run, self._force, self._video = folder, run, force, video
        self.frames: list[Image.Image] = []
        self._written, self._last = 0, time.monotonic()

    def load(self) -> None:
        """Restore the run from the state, if there is one."""
        import torch

        from ..images import load
        from ..recipe import differences, from_json

        path = self.folder / STATE
        if not path.exists():
            return
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
            then, number, video = from_json(kept["recipe"]), int(kept["frames"]), kept["video"]
            frames = [load(self._frame(k)) for k in range(number)]
        except Exception as error:  # torch, pickle and zipfile raise different errors
            raise ClipguideError(f"{path} cannot be read: delete {self.folder}.") from error
        if video != self._video:
            raise UsageError(
                f"The run in {self.folder} {'has' if video else 'has no'} --video: repeat its "
                "command, or delete the folder to start again."
            )
        if changes := differences(then, self._run.recipe()):
            self._changed(changes)
        try:
            self._run.load_state_dict(kept["run"])
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError):
            raise UsageError(
                f"The run in {self.folder} does not fit these settings: delete the folder to start "
                "again."
            ) from None
        self._written = number
        self.frames += frames

    def _changed(self, changes: list[str]) -> None:
        """Accept other settings than those of the state if the run is forced to."""
        if not self._force:
            raise UsageError(
                f"The run in {self.folder} has other settings ({'; '.join(changes[:3])}): repeat "
                "its command, or give --force to continue with these."
            )
        warnings.warn(
            "The image goes on with other settings than it began with: its recipe, which has "
            "only these, will not make it again.",
            ClipguideWarning,
            stacklevel=3,
        )

    def save(self) -> None:
        """Write the state if it is due, or if the run is done."""
        if time.monotonic() - self._last < SECONDS and not self._run.done:
            return
        import torch

        from ..recipe import write_file

        recipe = dataclasses.replace(self._run.recipe(), guide_score=0.0, judge_score=0.0)
        kept = {"recipe": recipe.to_json(), "frames": self._written, "video": self._video}
        kept["run"] = self._run.state_dict()
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        data = buffer.getbuffer()
        write_file(self.folder / STATE, lambda path: path.write_bytes(data), overwrite=True)
        self._last = time.monotonic()

    def keep_frame(self) -> None:
        """Write the last of `frames`."""
        from ..recipe import write_png

        write_png(self.frames[-1], self._frame(self._written), overwrite=True)
        self._written += 1

    def _frame(self, k: int) -> Path:
        return self.folder / f"frame-{k:06d}.png"
