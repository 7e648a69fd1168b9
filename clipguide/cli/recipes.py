"""`generate --config FILE`: take the defaults of the options from a recipe.

FILE is a PNG that clipguide made, or a JSON file with a recipe or some of its fields. An option on
the command line replaces that of the recipe. The recipe replaces those of `clipguide config`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..prompts import shorten
from .config import Setting
from .verb import HEADING, OF_DRAWING

EMBEDDED = {"mini", "mini-judge", ""}
OF_AN_IMAGE = (*OF_DRAWING, "Models")  # headings of the options that change pixels
SAME = (  # fields of a recipe with the same name as a parameter of `generate`
    "negative seed steps cfg cfg_window model clip judge device dtype cutouts decoder tiny "
    "refine question method"
).split()
# fields that name something to load
REWARDS = ("reward", "select")
NAMING = ("model", "clip", "judge", "tiny", "like", *REWARDS)


def take(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the recipe in the file the defaults of the other options."""
    if path is None or ctx.resilient_parsing:
        return path
    from ..recipe import read_fields

    fields = read_fields(path)
    if fields.get("command", "generate") != "generate":
        raise UsageError(
            f"{path} was drawn by {fields['command']}: clipguide replay {path} draws it again."
        )
    found = dict(_settings(fields, path))
    flags = {p.name: p.opts[0].lstrip("-") for p in ctx.command.params}
    for name in found:
        if name not in flags:
            raise UsageError(
                f"The recipe of {path} has an option {name!r} that the command line does not: "
                f"clipguide replay {path} draws it again."
            )
    kept = ctx.default_map or {}
    if "batch_seeds" in fields:  # a finished image has only these settings
        kept = {k: v for k, v in kept.items() if HEADING.get(flags[k]) not in OF_AN_IMAGE}
    ctx.default_map = {**kept, **found}
    parent = ctx.parent
    if parent is not None:
        mine = [Setting(ctx.info_name, flags[k], k, v, f"{path}") for k, v in found.items()]
        parent.obj = [*mine, *(parent.obj or ())]
    ctx.meta[__name__] = {name for name in NAMING if name in found}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=take,
        help="Take the options from a recipe: a PNG that clipguide made, or a JSON file. Options "
        "on the command line replace those of the recipe.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Load the models that the recipe names, and download them if necessary. Without it, "
        "only the embedded models are loaded.",
    ),
]


def _settings(fields: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Return the parameters of `generate` with their values, as a command line would give them."""
    if "prompt" in fields:
        yield "prompts", [fields["prompt"]]
    for name in SAME:
        if fields.get(name, "") != "":
            yield name, fields[name]
    if fields.get("guide", "") not in ("", fields.get("prompt")):
        yield "clip_prompt", fields["guide"]
    if fields.get("like"):
        yield "like", next(iter(fields["like"]))
    if sides := [name for name in ("width", "height") if name in fields]:
        if len(sides) == 1:
            raise UsageError(f"The recipe of {path} has a {sides[0]} alone: give both sides.")
        yield "size", f"{fields['width']}x{fields['height']}"
    options = _options(fields, path)
    yield from options.items()
    if fields.get("rewards"):
        yield "reward", list(fields["rewards"])
    yield from _candidates(fields, options)


def _options(fields: dict[str, Any], path: Path) -> dict[str, str]:
    """Return the options of the method, as text."""
    from ..guidance.methods import METHODS

    found = {}
    kind = METHODS.find(fields["method"]) if "method" in fields else None
    if "strength" in fields and (kind is None or hasattr(kind, "strength")):
        found["strength"] = str(fields["strength"])
    for name, spelt in fields.get("options", {}).items():
        try:
            value = json.loads(spelt)
        except (ValueError, RecursionError):
            raise UsageError(
                f"The option {shorten(name)!r} in the recipe of {path} is not JSON."
            ) from None
        if isinstance(value, list):
            value = ",".join(map(str, value))
        found["lookahead_steps" if name == "steps" else name] = str(value)
    return found


def _candidates(fields: dict[str, Any], options: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Return the number of candidates to draw. The recipe of a finished image has the seed of the
    candidate that was kept. Only this candidate is drawn again, or the particles that were drawn
    together. In a recipe written by hand, the fields give the number."""
    from ..guidance.methods import METHODS, Particles

    kind = METHODS.find(fields.get("method", "shortcut"))
    seeds = fields.get("batch_seeds")
    if seeds is None:
        if "best_of" in fields and not issubclass(kind, Particles):
            yield "best_of", fields["best_of"]
    elif issubclass(kind, Particles):
        place, group = fields.get("batch_position", 0), fields.get("best_of", kind().number)
        yield "seed", seeds[min(place, len(seeds) - 1) // group * group]
    if fields.get("selected_by") and (seeds is None or not kind().needs_gradient):
        yield "select", list(fields["selected_by"])


def check_trust(ctx: typer.Context, trust: bool) -> None:
    """Raise UsageError if the recipe names models to load and the user did not give --trust."""
    foreign = []
    for name in sorted(ctx.meta.get(__name__, set())):
        if not _of_recipe(ctx, name):
            continue
        value = ctx.params[name]
        if name in REWARDS:
            foreign += filter(is_foreign, value)
        elif name == "like":
            foreign.append(str(value))
        elif not members(value) <= EMBEDDED:
            foreign.append(value)
    if trust and ctx.params["config"] is None:
        raise UsageError("--trust says that a recipe may name models: give --config too.")
    if foreign and not trust:
        refuse(foreign, ctx.params["config"])


def refuse(names: list[str], path: Path) -> None:
    """Raise UsageError that says how to load the models of a recipe."""
    raise UsageError(
        f"The recipe of {path} names {shorten(', '.join(names), 200)}: give --trust to load that, "
        "and to download what is not here, if you trust who made the file."
    )


def members(clip: str) -> set[str]:
    """Return the CLIPs in a name, without their weights and dtype. "0.7*mini+mini-judge@:bfloat16"
    has two embedded ones."""
    return {one.rpartition("*")[2].strip().partition("@")[0] for one in clip.split("+")}


def is_foreign(reward: str) -> bool:
    """Return whether a reward loads something that is not in the package."""
    from ..rewards import wanted

    try:
        asked = wanted(reward)
    except UsageError:  # of a plug-in that is not installed
        return True
    embedded = EMBEDDED if asked.name == "clip" else {"", "mini"}
    return asked.kind.default != "mini" or asked.where not in embedded or bool(asked.model)


def _of_recipe(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT_MAP"
