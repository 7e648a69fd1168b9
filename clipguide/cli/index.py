"""clipguide index: make an index of folders of images, for search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import console
from .embedding import Options, open_pictures, tell_passed, with_options
from .options import among

if TYPE_CHECKING:
    from ..retrieval import Progress

BOTH = "mini+mini-judge"  # both together find more (benchmarks/search.py absent, recall@1)
ENGINES = ("local", "ray")

Db = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="The index: a folder, or a URI such as s3://bucket/index. [default: $CLIPGUIDE_DB, "
        "or a folder in ~/.local/share/clipguide]",
    ),
]


@partial(with_options, clip=BOTH)
def index(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER",
            help="Folders of images. Files, patterns in quotes and - for names on standard input "
            "work too.",
            show_default=False,
        ),
    ],
    options: Options,
    context: typer.Context,
    db: Db = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .csv, .tsv, .jsonl or .parquet with the columns path and caption. The "
            "command also reads the caption from a .txt file next to an image, with the same "
            "name.",
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Also remove from the index the images of folders that are now empty "
            "or missing, such as a disk that is not mounted."
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            autocompletion=among("local", "ray"),
            help="The engine. ray: many processes, on this machine or on the cluster of "
            "$RAY_ADDRESS; FOLDERs can be URLs such as s3://bucket/folder.",
        ),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The number of worker processes of --engine ray, each with a CLIP. [default: "
            "one per GPU, else one per processor]",
        ),
    ] = None,
) -> None:
    """Index images, so that clipguide search finds them.

    A second run takes the CLIP of the index; give the other options again. It reads only the images
    that have changed. It also removes deleted images from the index if their folder still has other
    images. You can stop the command at any time: the next run continues.
    """
    if options.urls:
        raise UsageError("index reads files, not URLs: download the images first.")
    _check_engine(engine, actors, folders, options)
    from ..retrieval import places

    place = places.default_path() if db is None else db
    places.check_folder(place)
    places.check_sources((folder for folder in folders if folder != "-"), place)
    if captions is not None and not captions.is_file():
        raise UsageError(f"There is no file of captions {captions}.")
    with console.plain_speech():
        options = _adopt(context, place, options)
        update, options, settings = _updater(engine, actors, options)
        pictures = open_pictures(folders, options)
        passed: list[str] = []
        runs: Iterator[Progress] = update(
            place,
            pictures.sources,
            engine=pictures.engine,
            recursive=options.recursive,
            captions=captions,
            verify=options.verify,
            prune=prune,
            passed=passed,
            **settings,
        )
        with console.Count("indexing") as count:
            for progress in runs:
                count(progress.done, progress.total, left=progress.left)
                for error in progress.errors:
                    console.complain(error)
        if not progress.total and not progress.gone:
            raise UsageError(f"There are no images in {', '.join(pictures.sources)}.")
        console.tell(console.one_line(f"{place}  {_sum(progress)}"))
        tell_passed(passed)
        if progress.failed:
            console.complain(f"{progress.failed} of {progress.total} could not be read.")
            if options.strict or progress.failed == progress.total:
                raise typer.Exit(1)


def _adopt(context: typer.Context, place: str | Path, options: Options) -> Options:
    """Return the CLIP of an existing index, if the command line names none."""
    from ..retrieval.store import model_of

    named = context.get_parameter_source("clip").name == "COMMANDLINE"
    model = None if named else model_of(place)
    return options if model is None else replace(options, clip=model)


def _check_engine(engine: str, actors: int | None, folders: list[str], options: Options) -> None:
    if engine not in ENGINES:
        raise UsageError(f"--engine is {' or '.join(ENGINES)}, not {engine!r}.")
    if engine == "local" and actors is not None:
        raise UsageError("--actors needs --engine ray.")
    web = ("http://", "https://")  # find says what to do about it
    url = next((f for f in folders if "://" in f and not f.lower().startswith(web)), None)
    if engine == "local" and url is not None:
        raise UsageError(f"{url} is a URL: --engine ray reads it where fsspec does.")
    if engine == "ray" and options.cache is not None:
        raise UsageError("The cache belongs to one machine: leave out --cache with --engine ray.")


def _updater(engine: str, actors: int | None, options: Options) -> tuple[Any, Options, dict]:
    """Return the update, the options of the driver, and those of the workers. A driver needs no
    GPU."""
    if engine == "local":
        from ..retrieval import update

        return update, options, {}
    from ..retrieval import beyond, cluster

    cluster.modules()
    settings = {"workers": actors, "threads": options.workers, "device": options.device}
    settings["trust_pickle"] = options.trust_pickle
    return beyond.update, replace(options, device="cpu", no_cache=True), settings


def _sum(progress: Progress) -> str:
    """Return a summary such as '3 new, 1 gone, 40 unchanged'."""
    counts = {
        "new": progress.new,
        "changed": progress.changed,
        "moved": progress.moved,
        "gone": progress.gone,
        "unchanged": progress.same,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "0 new"
