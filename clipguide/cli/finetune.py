"""clipguide finetune: a CLIP on images of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import console
from .generate import best_device
from .training import Run, pair

HELD_OUT = "held-out"
NONE = "none"


def _option(*names: str, text: str, metavar: str | None = None) -> typer.Option:
    return typer.Option(*names, help=text, metavar=metavar)


ONLY_GUIDES = ("against", "norm", "epsilon", "attack_steps", "minutes", "judge")
NOT_GUIDES = (
    "method",
    "loss",
    "epochs",
    "chunk",
    "rank",
    "patience",
    "templates",
    "augment",
    "bf16",
)
NOT_GUIDES += ("share", "test", "allow", "wise_ft")


def _check_given(ctx: typer.Context, for_guiding: bool) -> None:
    """UsageError for an option that would have no effect."""
    for name in NOT_GUIDES if for_guiding else ONLY_GUIDES:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} has no effect {'with' if for_guiding else 'without'} --for-guiding: "
                "leave it out."
            )


def finetune(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder whose subfolders name classes; a .csv, .tsv, .jsonl or .parquet of "
            "images and captions or labels; a webdataset .tar, or a pattern of them; an index.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The folder of the new CLIP."),
    ] = None,
    clip: Annotated[
        str, typer.Option(metavar="NAME", help="The CLIP to begin from, as for score.")
    ] = "mini",
    method: Annotated[
        str,
        _option(
            text="full: both towers. lora: low-rank changes of both. lit: the text tower alone. "
            "head: the last layer of the image tower, on vectors that are computed once.",
            metavar="full|lora|lit|head",
        ),
    ] = "full",
    loss: Annotated[str, _option(text="softmax: CLIP's. sigmoid: SigLIP's.")] = "softmax",
    epochs: Annotated[float, _option(text="Times that the images are gone through.")] = 10.0,
    steps: Annotated[int | None, _option(text="Steps, in the place of epochs.")] = None,
    batch: Annotated[int, _option(text="Images a step.")] = 64,
    chunk: Annotated[
        int,
        _option(text="Images encoded at a time: less memory, the same gradient."),
    ] = 64,
    lr: Annotated[float | None, _option(text="The learning rate. [default: by the method]")] = None,
    rank: Annotated[int, _option(text="Of lora.")] = 8,
    patience: Annotated[int, _option(text="Epochs without a gain until it stops.")] = 3,
    templates: Annotated[
        str | None,
        _option(text="Of classes' captions, as for classify.", metavar="NAME|FILE"),
    ] = None,
    augment: Annotated[
        bool, _option("--augment/--plain", text="Crop (and mirror, for classes).")
    ] = True,
    bf16: Annotated[bool, _option("--bf16", text="Autocast to bfloat16.")] = False,
    seed: Annotated[int, _option(text="Of the split, the order and the crops.")] = 0,
    image_column: Annotated[str | None, _option(text="Of a table.")] = None,
    caption_column: Annotated[str | None, _option(text="Of a table.")] = None,
    label_column: Annotated[str | None, _option(text="Of a table.")] = None,
    names: Annotated[
        Path | None,
        _option(text="A file with the name of class 0, 1, … a line.", metavar="FILE"),
    ] = None,
    share: Annotated[
        float,
        _option(
            text="Of the images, to set aside: half to choose by, half to test on if they are "
            "40 or more.",
        ),
    ] = 0.2,
    test: Annotated[str | None, _option(text="Other images to test on.", metavar="DATA")] = None,
    look: Annotated[
        bool, _option("--dry-run", text="Only report on the data, and train nothing.")
    ] = False,
    retain: Annotated[
        str | None,
        _option(
            text="What it should still know: held-out (drawings among 1,740 names, which mini was "
            "not trained on), other images, or none. [default: of mini held-out]",
            metavar="held-out|DATA|none",
        ),
    ] = None,
    allow: Annotated[float, _option(text="Points of retention that may be lost.")] = 1.0,
    wise_ft: Annotated[
        bool,
        _option(
            "--wise-ft/--no-wise-ft",
            text="Keep as much of the old weights as --allow asks for (WiSE-FT).",
        ),
    ] = True,
    for_guiding: Annotated[
        bool,
        _option(
            "--for-guiding",
            text="Train the image tower against attacks instead, so that its gradient draws "
            "shapes: a better guide.",
        ),
    ] = False,
    against: Annotated[
        str,
        _option(
            text="tecoa: by the names of classes. fare: by where the CLIP itself puts the "
            "images, for which any folder will do.",
            metavar="tecoa|fare",
        ),
    ] = "tecoa",
    norm: Annotated[str, _option(text="Of the attack's ball.", metavar="l2|linf")] = "l2",
    epsilon: Annotated[
        str | None,
        _option(
            text="The least and the largest radius, in pixels of [0, 1]. [default: by the norm]",
            metavar="LOW,HIGH",
        ),
    ] = None,
    attack_steps: Annotated[int, _option(text="Of each attack.")] = 1,
    minutes: Annotated[
        float | None,
        _option(text="Of the processor. [default: 240, or --steps]"),
    ] = None,
    judge: Annotated[
        str, _option(text="The CLIP that looks for what the guide draws.")
    ] = "mini-judge",
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, mps. [default: the best]")
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read a pickle or JIT archive of --clip.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Overwrite FOLDER, or begin anew what was stopped."),
    ] = False,
) -> None:
    """Fine-tune a CLIP on your own images.

    The result is a folder that every --clip takes, and open_clip too, with its card, the curve of
    target against retention, confusions, and the images that changed sides. A run that is stopped
    goes on with --resume.
    """
    _check_given(ctx, for_guiding)
    with console.plain_speech():
        from ..engine import processes

        state = processes()
        if state and for_guiding:
            raise UsageError("--for-guiding runs in one process: leave out accelerate launch.")
        if not 0 <= allow <= 100:
            raise UsageError(f"--allow is in points, from 0 to 100, not {allow:g}.")
        from ..finetune.job import DEFAULT
        from ..finetune.job import HELD_OUT as DRAWINGS

        run = Run(out, look=look, resume=resume, force=force)
        shared = dict(
            clip=clip,
            retain={None: DEFAULT, HELD_OUT: DRAWINGS, NONE: None}.get(retain, retain),
            device=device or (str(state.device) if state else best_device()),
            trust_pickle=trust_pickle,
            columns=dict(
                image_column=image_column,
                caption_column=caption_column,
                label_column=label_column,
                names=names,
            ),
        )
        if for_guiding:
            from ..finetune.guiding import GuidingConfig

            config = GuidingConfig(
                minutes=minutes,
                steps=steps,
                method=against,
                norm=norm,
                epsilon=pair(epsilon),
                attack_steps=attack_steps,
                lr=lr,
                seed=seed,
            )
            run.guide(data, config, judge=judge, batch=batch, **shared)
            return
        from ..finetune.config import FinetuneConfig

        config = FinetuneConfig(
            method=method,
            loss=loss,
            epochs=epochs,
            steps=steps,
            batch=batch,
            chunk=chunk,
            lr=lr,
            rank=rank,
            patience=patience,
            templates=templates,
            augment=augment,
            bf16=bf16,
            seed=seed,
        )
        keeping = {"allowed": allow / 100, "wise_ft": wise_ft}
        run.train(data, config, keeping, test=test, share=share, **shared)
