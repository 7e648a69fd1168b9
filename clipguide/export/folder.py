"""Write the folder of an export completely or not at all, with two files that describe it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ClipguideError, UsageError
from ..recipe import FULL

CARD = "clip.json"
NO_SPACE = ("no space left", "os error 28", "disk quota", "file too large", "os error 27")


@contextmanager
def staged(out: Path, *, force: bool, of: str = CARD) -> Iterator[Path]:
    """Yield an empty folder next to `out`. After success it replaces `out`; otherwise it is
    removed.

    With `force`, it replaces an empty folder, or one that clipguide wrote, as the file `of` in it
    shows.

    Raises:
        UsageError: `out` exists.
        ClipguideError: the disk is full or read-only.
    """
    check(out, force=force, of=of)
    target = Path(os.path.abspath(out))
    stage = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir()
        yield stage
        _replace(stage, target)
    except ClipguideError:
        raise
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        advice = "free some space" if error.errno in FULL else "choose another place"
        reason = error.strerror or str(error)
        raise ClipguideError(f"{out} cannot be written ({reason}): {advice}.") from None
    except Exception as error:  # safetensors, onnx and torch raise different errors
        if not no_space(error):
            raise
        raise ClipguideError(f"{out} cannot be written: the disk is full.") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def no_space(error: BaseException) -> bool:
    """Return whether an error of a library means that the disk is full."""
    return any(words in str(error).lower() for words in NO_SPACE)


def check(out: Path, *, force: bool, of: str = CARD) -> None:
    """Raise UsageError if clipguide may not write to the folder `out`."""
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"{out} is there already: give another --out, or --force to replace it.")
    empty = out.is_dir() and not any(out.iterdir())
    if out.is_symlink() or not empty and not _is_ours(out / of):
        raise UsageError(
            f"{out} is no folder that clipguide made so, and --force leaves it: name another."
        )


def _is_ours(card: Path) -> bool:
    try:
        return "clipguide" in json.loads(card.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _replace(stage: Path, target: Path) -> None:
    old = stage.with_name(stage.name + "-old")
    if target.exists():
        target.rename(old)
    try:
        stage.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
