"""clipguide invert: learn a word for a concept from a few images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..prompts import one_word
from . import console
from .embedding import check_named
from .values import best_device

MOST = 50  # images; more images do not improve the word


def invert(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES", help="Three to five images of the concept, or a folder."),
    ],
    word: Annotated[
        str,
        typer.Option("--word", "-w", help="A word without a meaning, such as blorvek."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The file of the word. [default: WORD.safetensors]"
        ),
    ] = None,
    clip: Annotated[
        str, typer.Option(metavar="NAME", help="The CLIP that learns the word.")
    ] = "mini",
    like: Annotated[
        str, typer.Option(help="A known word whose embedding is the starting point, such as "
        "creature.")
    ] = "",
    steps: Annotated[int, typer.Option(help="The number of steps of the optimiser.")] = 150,
    seed: Annotated[int, typer.Option(help="The seed of the crops.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The device, such as cpu, cuda or mps. [default: the fastest one]"
        ),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Read weights from a pickle or a JIT archive, which can run "
            "code."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite a file that exists.")
    ] = False,
) -> None:
    """Learn a word for a concept from a few images.

    This is textual inversion: the weights of the CLIP do not change. To use the word, append ~ and
    the file to the name of the CLIP: --clip mini~blorvek.safetensors.
    """
    from ..recipe import refuse_existing, write_file

    word = one_word(word)
    if steps < 1:
        raise UsageError(f"--steps must be above 0, not {steps}.")
    out = out or Path(f"{word.replace('/', '-')}.safetensors")
    if not force:
        refuse_existing(out)
    check_named(images)
    with console.plain_speech():
        from ..clip import load_parts
        from ..engine import find
        from ..finetune.inversion import Inversion, InversionConfig
        from ..images import load

        paths = list(find(images))
        if len(paths) > MOST:
            raise UsageError(f"{len(paths)} images are too many for one word: give at most {MOST}.")
        pictures = [load(path) for path in paths]
        config = InversionConfig(steps=steps, like=like, seed=seed)
        parts = load_parts(clip, device=device or best_device(), trust_pickle=trust_pickle)
        inversion = Inversion(parts, pictures, word, config)
        for _ in inversion:
            pass
        concept = inversion.concept()
        write_file(out, concept.save, overwrite=force)
        console.tell(f"{out}  {word}, cosine {inversion.cosine():.2f} with its images")
