"""The work of `clipguide optimize` after its options are read: saved and resumed runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from . import console, watching
from .files import Files
from .unfinished import Unfinished

if TYPE_CHECKING:
    from ..pipelines.canvas_run import Run
    from ..pipelines.drawing import Drawing


def draw(
    runs: Iterator[Run],
    number: int,
    files: Files,
    reel: watching.Reel | None,
    *,
    preview: int,
    force: bool,
    quiet: bool,
) -> None:
    """Take the steps of all runs. Write each image when it is finished.

    Args:
        runs: one run for each image.
        number: the number of runs.
        files: the files of the images.
        reel: the video, or None.
        preview: the number of steps between two previews; 0 is none.
        force: whether to continue a run whose settings have changed.
        quiet: whether to print nothing but the paths.
    """
    from ..images import to_pil

    folders = []
    with console.Meter(number, quiet=quiet) as meter:
        for k, run in enumerate(runs):
            left = None
            if files.resume:
                left = Unfinished(files.folder(k), run, force=force, video=reel is not None)
            finished = files.finished(k, [run.recipe()]) if files.resume else None
            if left:
                left.load()
                folders.append(left.folder)
            frames: list[Any] = left.frames if left else []
            for step in () if finished else run:
                meter(step)
                if reel and (step.index % run.drawing.every == 0 or run.done):
                    frames.append(reel.shrunk(to_pil(step.image())[0]))
                    if left:
                        left.keep_frame()
                if preview and (step.index + 1) % preview == 0:
                    files.add_preview(step)
                if left:
                    left.save()
            picture = finished or run.picture()
            files.add(picture)
            if reel:
                reel.add_frames([*frames, picture.image])
        if preview:
            files.add_preview(None)
        if reel:
            files.add_animation(reel)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def timed(owner: Any, prompt: str, drawing: Drawing, seconds: float, *, quiet: bool) -> Drawing:
    """Return the drawing with the number of steps that takes about this many seconds."""
    from dataclasses import replace

    from ..pipelines.drawing import LIMITS

    before, a_step = owner.seconds_needed(prompt, drawing)
    steps = int((seconds - before) / a_step)
    steps = min(max(steps, owner.settled(drawing).sizes), LIMITS["steps"][1])
    if not quiet:
        typer.echo(f"{seconds:g} seconds are about {steps} step{'s' * (steps > 1)}.", err=True)
    return replace(drawing, steps=steps)
