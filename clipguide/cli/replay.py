"""clipguide replay: draw an image again from the recipe in its PNG, and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, naming, recipes
from .options import ReportAsJson

if TYPE_CHECKING:
    from ..pipelines.picture import Picture
    from ..recipe import Recipe


def replay(
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG that clipguide made.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Save the new image to this PNG."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite files that exist.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Load the models that the recipe names, download them if necessary, and also "
            "read pickles. Use it only if you trust the recipe.",
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="The device. [default: the recipe's]")
    ] = None,
    as_json: ReportAsJson = False,
) -> None:
    """Draw an image again, and exit with 1 if a pixel differs.

    If pixels differ, the command lists what else differs: versions, weights, device, threads.
    """
    from ..recipe import differences, read_png, save_png

    recipe = read_png(picture)
    if not trust:
        _refuse_foreign(recipe, picture)
    if out:
        naming.claim([out], force=force)
    with console.plain_speech(drawing=True):
        remade = _remake(recipe, device or recipe.device, trust=trust)
    unequal, most, sizes = _compare(picture, remade)  # read it before `out` can overwrite it
    if out:
        save_png(remade.image, remade.recipe, out, overwrite=force)
    changes = sizes + differences(recipe, remade.recipe)
    if as_json:
        facts = {"equal": not unequal, "unequal_values": unequal, "largest_difference": most}
        typer.echo(json.dumps({**facts, "differences": changes}))
    else:
        _tell(unequal, most, changes)
    raise typer.Exit(1 if unequal else 0)


def _refuse_foreign(recipe: Recipe, picture: Path) -> None:
    clips = recipes.members(recipe.clip) | recipes.members(recipe.judge)
    foreign = sorted({recipe.model, recipe.tiny, *clips} - recipes.EMBEDDED)
    foreign += sorted(recipe.files)
    foreign += sorted(filter(recipes.is_foreign, {*recipe.rewards, *recipe.selected_by}))
    if foreign:
        recipes.refuse(foreign, picture)


def _remake(recipe: Recipe, device: str, *, trust: bool) -> Picture:
    if recipe.command == "optimize":
        from ..pipelines.text_to_canvas import TextToCanvas

        canvas = TextToCanvas(
            recipe.method,
            model=recipe.model or None,
            clip=recipe.clip,
            judge=recipe.judge,
            device=device,
            dtype=recipe.dtype,
        )
        return canvas.replay(recipe, trust_pickle=trust)
    from ..pipelines.text_to_image import TextToImage

    pipeline = TextToImage(
        model=recipe.model,
        clip=recipe.clip,
        judge=recipe.judge or None,
        device=device,
        dtype=recipe.dtype,
    )
    return pipeline.replay(recipe, trust_pickle=trust)


def _compare(picture: Path, remade: Picture) -> tuple[int, int, list[str]]:
    """Return the number of 8-bit values that differ, the largest difference, and any difference of
    size."""
    import numpy as np

    from ..images import load

    then, now = load(picture), remade.image
    if then.size != now.size:
        (width, height), (wide, high) = then.size, now.size
        sizes = f"size: the file is {width}x{height}, what its recipe makes {wide}x{high}"
        return 3 * wide * high, 255, [sizes]
    apart = np.abs(np.asarray(then).astype(int) - np.asarray(now))
    return int((apart > 0).sum()), int(apart.max()), []


def _tell(unequal: int, most: int, changes: list[str]) -> None:
    if not unequal:
        typer.echo("The same image, pixel for pixel.")
    else:
        typer.echo(f"Not the same: {unequal} of the 8-bit values differ, by up to {most}.")
        if not changes:
            typer.echo(
                "The recipe is the same to the letter, so the pixels may have been edited, or an "
                "earlier clipguide with other defaults drew them."
            )
    for change in changes:
        typer.echo(f"  {console.one_line(change)}")
