"""clipguide finetune: train a CLIP on your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import console
from .options import spelt
from .training import Run, pair
from .values import best_device

HELD_OUT = "held-out"
NONE = "none"


def _option(*names: str, text: str, metavar: str | None = None) -> typer.Option:
    return typer.Option(*names, help=text, metavar=metavar, autocompletion=spelt(metavar))


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
    """Raise UsageError for an option that would have no effect."""
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
            help="A folder whose subfolders name classes; a folder of images, each with its "
            "caption in a .txt of the same name; a .csv, .tsv, .jsonl or .parquet of images and "
            "captions or labels; a webdataset .tar, or a pattern of them; or an index.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="The folder of the new CLIP. Required, except with --dry-run.",
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The CLIP to begin with. clipguide score --help lists the forms of NAME.",
        ),
    ] = "mini",
    method: Annotated[
        str,
        _option(
            text="What to train. full: both encoders. lora: low-rank changes of both. lit: the "
            "text encoder alone. head: the last layer of the image encoder, on embeddings that "
            "are computed once.",
            metavar="full|lora|lit|head",
        ),
    ] = "full",
    loss: Annotated[
        str,
        _option(
            text="The loss. softmax: that of CLIP. sigmoid: that of SigLIP.",
            metavar="softmax|sigmoid",
        ),
    ] = "softmax",
    epochs: Annotated[float, _option(text="The number of epochs.")] = 10.0,
    steps: Annotated[int | None, _option(text="The number of steps, in place of --epochs.")] = None,
    batch: Annotated[int, _option(text="The number of images in a batch.")] = 64,
    chunk: Annotated[
        int,
        _option(
            text="The number of images to encode at a time. A smaller number needs less memory, "
            "and gives the same gradient."
        ),
    ] = 64,
    lr: Annotated[
        float | None, _option(text="The learning rate. [default: that of the method]")
    ] = None,
    rank: Annotated[int, _option(text="The rank of lora.")] = 8,
    patience: Annotated[int, _option(text="Stop after this many epochs without a gain.")] = 3,
    templates: Annotated[
        str | None,
        _option(
            text="The templates for the names of classes. clipguide classify --help lists the "
            "forms of NAME.",
            metavar="NAME|FILE",
        ),
    ] = None,
    augment: Annotated[
        bool,
        _option(
            "--augment/--plain",
            text="Augment the images by random crops. If the data has classes instead of "
            "captions, also mirror them.",
        ),
    ] = True,
    bf16: Annotated[bool, _option("--bf16", text="Compute in bfloat16 by autocast.")] = False,
    seed: Annotated[int, _option(text="The seed of the split, the order and the crops.")] = 0,
    image_column: Annotated[
        str | None, _option(text="The column of a table with the images.")
    ] = None,
    caption_column: Annotated[
        str | None, _option(text="The column of a table with the captions.")
    ] = None,
    label_column: Annotated[
        str | None, _option(text="The column of a table with the labels.")
    ] = None,
    names: Annotated[
        Path | None,
        _option(
            text="A file with the names of class 0, 1 and so on, one per line.", metavar="FILE"
        ),
    ] = None,
    share: Annotated[
        float,
        _option(
            text="The share of the images to set aside. Half of them select the epoch, and half "
            "test the result. With fewer than 40 set aside, all of them do both.",
        ),
    ] = 0.2,
    test: Annotated[str | None, _option(text="Other images to test on.", metavar="DATA")] = None,
    look: Annotated[
        bool, _option("--dry-run", text="Report on the data, and train nothing.")
    ] = False,
    retain: Annotated[
        str | None,
        _option(
            text="The retention set, which tests what the CLIP must still know: held-out (534 "
            "drawings that mini was not trained on, each to be named among 1,740 names), other "
            "images with captions or labels, or none. [default: held-out for mini; required for "
            "other CLIPs]",
            metavar="held-out|DATA|none",
        ),
    ] = None,
    allow: Annotated[
        float,
        _option(
            text="The allowed loss of accuracy on --retain, in percentage points. For captions, "
            "accuracy means recall@1."
        ),
    ] = 1.0,
    wise_ft: Annotated[
        bool,
        _option(
            "--wise-ft/--no-wise-ft",
            text="Average the new weights with the old ones, so that the loss of accuracy stays "
            "within --allow (WiSE-FT).",
        ),
    ] = True,
    for_guiding: Annotated[
        bool,
        _option(
            "--for-guiding",
            text="Train the image encoder on adversarial images, so that its gradient is less "
            "noisy. Such a CLIP steers better.",
        ),
    ] = False,
    against: Annotated[
        str,
        _option(
            text="The adversarial loss. tecoa: the names of classes. fare: the CLIP's own "
            "embeddings of the images, which needs no labels.",
            metavar="tecoa|fare",
        ),
    ] = "tecoa",
    norm: Annotated[
        str, _option(text="The norm of the attack: l2 or linf.", metavar="l2|linf")
    ] = "l2",
    epsilon: Annotated[
        str | None,
        _option(
            text="The smallest and the largest radius of the attack, for pixel values in [0, 1]: "
            "with l2 over the whole image, with linf for each value. [default: depends on --norm]",
            metavar="LOW,HIGH",
        ),
    ] = None,
    attack_steps: Annotated[int, _option(text="The number of steps of each attack.")] = 1,
    minutes: Annotated[
        float | None,
        _option(
            text="With --for-guiding: the longest training, in minutes of processor time. "
            "[default: 240; no limit with --steps]"
        ),
    ] = None,
    judge: Annotated[
        str,
        _option(
            text="With --for-guiding: the CLIP that measures whether the guide's "
            "gradient gives recognisable images.",
            metavar="NAME",
        ),
    ] = "mini-judge",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The device, such as cpu, cuda or mps. [default: the fastest one]"
        ),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Read weights from a pickle or a JIT archive, which can run code.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was stopped.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Overwrite the folder, or start a stopped run from the beginning.",
        ),
    ] = False,
) -> None:
    """Fine-tune a CLIP on your own images.

    The result is a folder in the format of the CLIP that you begin with: open_clip or transformers.
    --clip of every command accepts it. The folder also has a model card, the confusion matrices,
    the images whose predicted label changed, and a curve of the accuracy on your data against the
    accuracy on the retention set. If you stop a run, --resume continues it.
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
