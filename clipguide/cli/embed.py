"""clipguide embed: write the embeddings of images to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .embedding import Images, Options, open_pictures, with_options


@with_options
def embed(
    images: Images,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The .npz or .parquet file to write."),
    ],
    options: Options,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite a file that exists.")
    ] = False,
) -> None:
    """Write the embeddings of images to one file.

    The embeddings have length 1. An .npz holds paths, vectors, key (the fingerprint of the
    model, and the settings) and model. A .parquet has the columns path and vector. score,
    rerank and classify take the file in place of the images.
    """
    from ..engine import table

    with console.plain_speech():
        table.check(out, overwrite=force)
        pictures = open_pictures(images, options)
        engine = pictures.engine
        count = table.write(
            out, pictures, key=lambda: engine.key, model=engine.clip_name, overwrite=force
        )
        console.tell(f"{out}  {count} vectors of {engine.clip.embed_dim}")
        pictures.finish()
