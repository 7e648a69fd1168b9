"""The work of `clipguide generate` after its options are read: images, previews and sheets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from ..prompts import shorten
from . import console, sureness, watching
from .files import Files

if TYPE_CHECKING:
    from ..pipelines.picture import Picture
    from ..pipelines.text_to_image import Step


def draw(
    prompts: list[str],
    models: dict[str, Any],
    settings: dict[str, Any],
    files: Files,
    reel: watching.Reel | None,
    *,
    preview: int,
    quiet: bool,
) -> None:
    """Draw the images. Write each image when it is finished, then the sheets and the video.

    Args:
        prompts: what to draw.
        models: the arguments of TextToImage.
        settings: the arguments of Generation.
        files: the files of the images, and the sheets to write.
        reel: the video, or None.
        preview: the number of steps between two previews; 0 is none.
        quiet: whether to print nothing but the paths.
    """
    from dataclasses import replace

    from ..pipelines.generation import Generation
    from ..pipelines.text_to_image import TextToImage

    asked = Generation(**settings)
    make = TextToImage(**models)
    if not quiet:
        files.sureness = sureness.Drawn(guide=make.clip, judge=make.judge)
    kept = {"tapes": files.tapes, "finished": files.finished} if files.resume else {}
    on_step: list[Callable[[Step], None]] = []
    drawn = make.iterate(prompts, asked, **kept, on_step=lambda step: on_step[0](step))
    if make.choice and not quiet:
        typer.echo(f"auto: {make.choice}", err=True)
    best_of, method = make.chosen.best_of, make.chosen.configured
    runs = best_of * method.candidates * method.runs
    if "compare" in files.sheets:
        runs += asked.best_of or 1
    samples = len(files.paths) * runs
    with console.Meter(samples, quiet=quiet) as meter:

        def watch(step: Step) -> None:
            meter(step)
            if preview and (step.index + 1) % preview == 0:
                files.add_preview(step)

        on_step.append(watch)
        for picture in drawn:
            files.add(picture)
            if reel:
                reel.add(picture)
        if files.tapes:
            shutil.rmtree(files.tapes, ignore_errors=True)
        if preview:
            files.add_preview(None)
        if reel:
            files.add_animation(reel)
        if "grid" in files.sheets:
            _write_grid(files)
        if "compare" in files.sheets:
            off = {"method": "shortcut", "strength": 0.0, "refine": 0, "frames": False}
            plain = make.iterate(prompts, replace(asked, **off, budget=None), on_step=meter)
            _write_comparison(files, list(plain))


def tell_of_easing(files: Files) -> None:
    """Print one line if the judge reduced the steering."""
    from ..pipelines.picture import easing

    if said := easing(files.pictures):
        shows = "clipguide plot" if files.trace else "--trace"
        console.complain(f"{said}; {shows} shows it.")


def _write_grid(files: Files) -> None:
    pictures = files.pictures
    labels = [f"{p.seed} {shorten(p.recipe.prompt)}" for p in pictures]
    files.add_sheet("grid", [p.image for p in pictures], labels, watching.columns(len(pictures)))


def _write_comparison(files: Files, plain: list[Picture]) -> None:
    """Write a sheet that shows each image next to one sample without steering, with the scores of
    the judge, or of the guide if there is no judge."""
    pairs = [pair for both in zip(plain, files.pictures, strict=True) for pair in both]
    recipe = files.pictures[0].recipe
    selected = recipe.best_of > 1 and recipe.method == "shortcut" and not recipe.strength
    names = ("unguided", f"best of {recipe.best_of}" if selected else "guided")
    scores = [p.guide_score if p.judge_score is None else p.judge_score for p in pairs]
    labels = [f"{names[i % 2]} {score:.3f}" for i, score in enumerate(scores)]
    files.add_sheet("compare", [p.image for p in pairs], labels, columns=2)
