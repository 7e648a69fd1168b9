"""Save the state of a run in one file. The file is complete at every moment, and only the same run
loads it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..recipe import FULL

FILE, BEFORE = "checkpoint.pt", "checkpoint-before.pt"


class Checkpoints:
    """The file `folder`/checkpoint.pt of the run that `about` describes (settings, data and model),
    and the file before it. A loss may show only one step later that the weights are broken."""

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.path, self.about = folder / FILE, about
        self.before = folder / BEFORE
        self._warned = False
        self._cut = False  # the file at `path` cannot be read

    def save(self, state: dict) -> bool:
        """Replace the old file once the new one is complete. If the disk is full, keep the old
        file, warn, and return False."""
        fresh = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as stream:
                torch.save({"about": self.about, "state": state}, stream)
            if self.path.exists() and not self._cut:
                self.path.replace(self.before)
            fresh.replace(self.path)
            self._cut = False
            return True
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            fresh.unlink(missing_ok=True)
            if not _full(error):
                why = getattr(error, "strerror", None) or error
                raise ClipguideError(f"{self.path} cannot be written: {why}.") from None
        if not self._warned:
            warnings.warn(
                f"The disk is full: {self.path} stays as it was, and the run goes on. Free some "
                "space before it ends.",
                ClipguideWarning,
                stacklevel=2,
            )
        self._warned = True
        return False

    def load(self, *, before: bool = False) -> dict | None:
        """Return the state, or None if there is none. With `before`, return the state before it. If
        a file cannot be read, take the other one and warn.

        Raises:
            UsageError: it is of another model, other data or other settings. The message names
                them.
            ClipguideError: neither file can be read.
        """
        paths = [path for path in (self.path, self.before) if path.exists()]
        paths = paths[::-1] if before else paths
        if not paths:
            return None
        read = ((path, kept) for path in paths if (kept := _read(path)))
        path, kept = next(read, (None, None))
        if kept is None:
            raise ClipguideError(
                f"{' and '.join(map(str, paths))} cannot be read: delete {self.path.parent} to "
                "begin anew."
            )
        if path != paths[0]:
            self._cut = paths[0] == self.path
            which = "the one before" if path == self.before else "the last one"
            warnings.warn(
                f"{paths[0]} cannot be read: the run goes on from {which}.",
                ClipguideWarning,
                stacklevel=2,
            )
        then, state = kept
        other = [name for name, value in self.about.items() if then.get(name) != value]
        if other:
            changes = ", ".join(f"{n} was {then.get(n)}, not {self.about[n]}" for n in other)
            raise UsageError(
                f"What was begun in {self.path.parent} is another run ({changes}): repeat the "
                "command that began it, or delete it to begin anew."
            )
        return state

    def remove(self) -> None:
        """Delete the files, and their folder if it is then empty."""
        for path in (self.path, self.before):
            path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def _read(path: Path) -> tuple[dict[str, str], dict] | None:
    """Return the description of the run and the state in a file, or None if the file is incomplete.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        return dict(kept["about"]), kept["state"]
    except Exception:  # torch, pickle and zipfile raise different errors
        return None


def _full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return "file write failed" in str(error) or "unexpected pos" in str(error)
