"""A loop's state beside its picture, so that a run that was stopped goes on with the same bits."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClipguideError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.text_to_canvas import Run

SECONDS = 2.0  # from one state to the next: little is lost, and little time spent
STATE = "state.pt"


class Unfinished:
    """What is kept of a run in `folder`: its state every two seconds, and the frames of its video.

    `frames` are those up to the state. UsageError, unless `force`, if the state is of a run with
    other settings.
    """

    def __init__(self, folder: Path, run: Run, *, force: bool) -> None:
        self.folder, self._run, self._force = folder, run, force
        self.frames: list[Image.Image] = []
        self._written, self._last = 0, time.monotonic()

    def load(self) -> None:
        """Set the run to where it was, if it was anywhere."""
        import torch

        from ..images import load
        from ..recipe import differences, from_json

        path = self.folder / STATE
        if not path.exists():
            return
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
            then = from_json(kept["recipe"])
        except Exception as error:  # torch, pickle and zipfile each raise their own
            raise ClipguideError(f"{path} cannot be read: delete {self.folder}.") from error
        changes = differences(then, self._run.recipe())
        if changes and not self._force:
            raise UsageError(
                f"What was begun in {self.folder} has other settings ({'; '.join(changes[:3])}): "
                "repeat the command that began it, or give --force to go on with these."
            )
        try:
            self._run.load_state_dict(kept["run"])
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError):
            raise UsageError(
                f"What was begun in {self.folder} does not fit these settings: delete it to begin "
                "anew."
            ) from None
        self._written = kept["frames"]
        self.frames += [load(self._frame(k)) for k in range(self._written)]

    def save(self) -> None:
        """Write the state, if it is time, or the run is done."""
        if time.monotonic() - self._last < SECONDS and not self._run.done:
            return
        import torch

        from ..recipe import write_file

        recipe = dataclasses.replace(self._run.recipe(), guide_score=0.0, judge_score=0.0)
        kept = {"recipe": recipe.to_json(), "frames": self._written}
        kept["run"] = self._run.state_dict()
        write_file(self.folder / STATE, lambda path: torch.save(kept, path), overwrite=True)
        self._last = time.monotonic()

    def keep_frame(self) -> None:
        """Write the newest of `frames`."""
        from ..recipe import write_png

        write_png(self.frames[-1], self._frame(self._written), overwrite=True)
        self._written += 1

    def erase(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _frame(self, k: int) -> Path:
        return self.folder / f"frame-{k:06d}.png"
