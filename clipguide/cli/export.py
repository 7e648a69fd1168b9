"""clipguide export: write a CLIP for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import console
from .options import among

if TYPE_CHECKING:
    from PIL import Image


def export(
    to: Annotated[
        str,
        typer.Option(
            metavar="RUNTIME",
            autocompletion=among("onnx", "hf", "torch-export"),
            help="The runtime: onnx, torch-export, or hf (transformers), which takes a CLIP of "
            "OpenAI's architecture such as ViT-B-32, and not mini.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")
    ],
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The CLIP. clipguide score --help lists the forms of NAME.",
        ),
    ] = "mini",
    int8: Annotated[bool, typer.Option("--int8", help="For onnx: also write int8.")] = False,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Also write float16. For hf, write float16 in place of "
        "float32."),
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Images to calibrate and measure with: files or folders. Repeatable. [default: "
            "drawings]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an export that exists.")
    ] = False,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Read weights from a pickle or a JIT archive, which can run "
            "code."
        ),
    ] = False,
) -> None:
    """Export a CLIP to another runtime.

    The command exports both encoders, with the preprocessing inside. It runs each exported file,
    compares its embeddings with those of PyTorch, and prints the cosine similarities. If a file
    does not agree, the command stops with an error and writes nothing.
    """
    from ..clip import load_parts
    from ..export import export as write
    from ..export import requirements
    from ..export.folder import check

    with console.plain_speech():
        requirements(to, int8=int8, fp16=fp16)
        check(out, force=force)
        chosen = _pictures(images) if images else None
        parts = load_parts(clip, trust_pickle=trust_pickle)
        done = write(parts, to=to, out=out, int8=int8, fp16=fp16, force=force, pictures=chosen)
    for name, found in done.agreement.items():
        size = f"  {done.sizes[name] / 1e6:.1f} MB" if name in done.sizes else ""
        how = f"  int8 of {done.quantisation[name]}" if name in done.quantisation else ""
        console.tell(
            f"{out / name if size else name}{size}  cosine {found.mean:.5f}, at the lowest "
            f"{found.lowest:.5f} of {found.count}{how}"
        )
    console.tell(f"{out / 'README.md'}  says how to run it")


def _pictures(sources: list[str]) -> list[Image.Image]:
    """Return the RGB images to calibrate and measure with, at most as many as are used. An
    unreadable image is an error."""
    from ..engine.files import find
    from ..export.probes import MOST
    from ..images import load

    found = [load(source) for _, source in zip(range(MOST), find(sources))]
    if len(found) < 2:
        raise UsageError("Give at least two --images: half of them calibrate, half measure.")
    return found
