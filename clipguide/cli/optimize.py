"""clipguide optimize: draw an image of each prompt on a canvas, by gradients."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import console, options, sureness, values, watching
from .files import Files
from .optimizing import draw, timed


def optimize(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw, one image for each PROMPT. clipguide generate --help explains "
            "parts and weights.",
            show_default=False,
        ),
    ] = None,
    canvas: Annotated[
        str,
        typer.Option(
            autocompletion=options.registered("canvas", "pixels", "fourier", "vqgan", "latent"),
            metavar="NAME",
            help="What is optimised. pixels: a pyramid of pixels. fourier: a spectrum. vqgan: the "
            "codes of a VQGAN. latent: the latents of an autoencoder.",
        ),
    ] = "pixels",
    steps: Annotated[
        int | None, typer.Option(help="The number of steps of the loop. [default: 200]")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="The time for each image in seconds, instead of --steps. clipguide times a few "
            "steps and chooses the number of steps."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIDE|WxH", help="The size in pixels. [default: 256]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="The learning rate, relative to the size of the codes. [default: that of the "
            "canvas]"
        ),
    ] = None,
    cutouts: Annotated[
        int | None,
        typer.Option(help="The number of crops that CLIP sees in each step. [default: 8]"),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.among("plain", "warped", "vqgan-clip", "disco"),
            metavar="NAME",
            help="How the crops are transformed. plain: crops only. warped: also mirrored, "
            "rotated, seen in perspective and recoloured at random. vqgan-clip, disco: as in these "
            "notebooks. [default: warped]",
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="The image is a moving average of the canvas. This is its decay. "
        "[default: 0.9]"),
    ] = None,
    grow: Annotated[
        int | None,
        typer.Option(
            help="The number of sizes: begin small, and double the size N - 1 times. [default: 1; "
            "for vqgan without --size, 2]"
        ),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            help="The weight of the total variation, which smooths the image. [default: 0]"
        ),
    ] = None,
    softness: Annotated[
        float | None, typer.Option(help="The softness of the codes of a VQGAN: 0 takes the "
        "nearest code, more mixes several. [default: 0]")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.among("light", "own"),
            metavar="NAME",
            help="The first image. light: a pale blur. own: that of the canvas, which is random "
            "codes for vqgan and grey for pixels. [default: own for fourier, light for the others]",
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image to begin with.")
    ] = None,
    init_weight: Annotated[
        float | None,
        typer.Option(help="How strongly the result must resemble --init. [default: 0]"),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A mask: draw where it is white, and keep --init elsewhere."
        ),
    ] = None,
    image_prompt: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An image that the result must resemble. Repeatable."),
    ] = None,
    prompt_at: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP:TEXT", help="Another prompt from that step on. Repeatable."),
    ] = None,
    tile: Annotated[
        bool,
        typer.Option("--tile", help="Make opposite edges fit, so that copies of the image tile."),
    ] = False,
    symmetry: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.among("horizontal", "vertical"),
            metavar="AXIS",
            help="Make the image its own mirror image. horizontal: left mirrors right. vertical: "
            "top mirrors bottom.",
        ),
    ] = None,
    palette: Annotated[
        str | None,
        typer.Option(metavar="COLOURS", help="The colours to use, such as '#102030,#ffffff'."),
    ] = None,
    palette_weight: Annotated[
        float | None, typer.Option(help="How strongly to keep to --palette. [default: 1]")
    ] = None,
    zoom: Annotated[
        float | None,
        typer.Option(
            help="Enlarge the image by this factor every --frame-every steps. [default: 1]"
        ),
    ] = None,
    rotate: Annotated[
        float | None,
        typer.Option(
            help="Rotate the image by these degrees every --frame-every steps. [default: 0]"
        ),
    ] = None,
    shift: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Shift the image by these pixels every --frame-every steps. [default: 0,0]",
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--frame-every", help="The number of steps from one frame to the next. [default: 10]"
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop if the judge's score has not risen for N scores. It scores every tenth "
            "step. [default: never]"
        ),
    ] = None,
    count: options.Count = 1,
    seed: options.Seed = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model of the canvas vqgan or latent: mini, a folder in diffusers format, "
            "or a checkpoint of taming-transformers in safetensors. [default: mini]",
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The CLIP that guides. clipguide score --help lists the forms of NAME.",
        ),
    ] = "mini",
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The CLIP that selects the best step, and with --sds one of eight drafts. '': no "
            "judge. [default: mini-judge for mini, else none]",
        ),
    ] = None,
    sds: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="The weight of score distillation: the gradient towards what the embedded "
            "generator sees in the image, beside a weight of 1 for CLIP. 0: CLIP alone. [default: "
            "2 for --clip mini, or 0 with --init, --image-prompt, --prompt-at, --tile or motion]",
        ),
    ] = None,
    fade: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="The share of the steps over which the pull of CLIP falls to 0. The judge scores "
            "the steps after that. 0: the pull stays. [default: 0.9 with --sds, or 0; 0 with "
            "--prompt-at or motion]",
        ),
    ] = None,
    reward: options.SteerBy = None,
    question: options.Question = "",
    trust_pickle: options.TrustPickle = False,
    out: options.Out = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Overwrite files that exist; with --resume, continue with changed settings.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Save the state of the loop next to the image until it is finished. It needs "
            "--seed. After a stop, give the same command again: it continues from there.",
        ),
    ] = False,
    preview: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Every N steps, write the current state to a PNG. Its name is that of the first "
            "image with -preview added. 0: never.",
        ),
    ] = 0,
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a video, one frame per --frame-every steps. FILE ends in .gif, "
            ".webp or .mp4. MP4 needs PyAV: pip install av.",
        ),
    ] = None,
    as_json: options.AsJson = False,
    device: options.Device = None,
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=options.among("float32", "bfloat16"),
            metavar="NAME",
            help="The dtype of the canvas's model: float32 or bfloat16.",
        ),
    ] = "float32",
    quiet: options.Quiet = False,
) -> None:
    """Draw an image of each PROMPT by gradients.

    The image is optimised on a canvas: by CLIP, and with --sds by a generator too. The judge
    selects the best step. Each PNG contains the recipe that made it.
    """
    turns = values.turns(prompt_at or [])
    if turns and turns[0][0] == 0:
        if prompts:
            raise UsageError(
                "A PROMPT and --prompt-at 0 both say what to begin with: leave one of them out."
            )
        prompts = [turns[0][1]]
    if not prompts:
        raise UsageError("There is no prompt: say what to draw.")
    values.check_run(count * len(prompts), preview=preview, resume=resume, seed=seed)
    if every is not None and video is None and not (zoom or rotate or shift):
        raise UsageError(
            "--frame-every is for --video, --zoom, --rotate and --shift: give one of these."
        )
    _check_seconds(seconds, steps=steps, resume=resume)
    seed = secrets.randbelow(2**31) if seed is None else seed
    settings = {
        "steps": steps,
        "size": values.sides(size),
        "lr": lr,
        "cutouts": cutouts,
        "views": views,
        "ema": ema,
        "grow": grow,
        "smooth": smooth,
        "temperature": softness,
        "start": start,
        "init": init and str(init),
        "init_weight": init_weight,
        "mask": mask and str(mask),
        "pictures": tuple(map(str, image_prompt or ())) or None,
        "tile": tile,
        "symmetry": symmetry,
        "palette": palette and tuple(part.strip() for part in palette.split(",")),
        "palette_weight": palette_weight,
        "prompts_at": turns or None,
        "zoom": zoom,
        "rotate": rotate,
        "shift": values.shift(shift),
        "every": every,
        "patience": patience,
        "sds": sds,
        "fade": fade,
        "rewards": tuple(reward or ()) or None,
        "question": question or None,
        "trust_pickle": trust_pickle,
    }
    reel = None
    if video is not None:
        reel = watching.Reel(video, count * len(prompts), force=force or resume)
    sheets = {"preview": preview > 0}
    files = Files.plan(out, prompts, count, seed, sheets, force=force, resume=resume)
    with console.plain_speech(drawing=True):
        from ..pipelines.drawing import Drawing
        from ..pipelines.text_to_canvas import TextToCanvas

        try:
            drawing = Drawing(**{k: v for k, v in settings.items() if v is not None})
            if seconds is None:
                drawing.check(canvas)
            owner = TextToCanvas(
                canvas,
                model=model,
                clip=clip,
                judge=judge,
                device=device or values.best_device(),
                dtype=dtype,
                key=os.environ.get(options.KEY, ""),
            )
            if seconds is not None:
                drawing = timed(owner, prompts[0], drawing, seconds, quiet=quiet)
            if not quiet:
                files.sureness = sureness.Drawn(guide=owner.clip, judge=owner.judge)
            every_seed = [(prompt, seed + i) for prompt in prompts for i in range(count)]
            runs = (owner.start(prompt, drawing, seed=one) for prompt, one in every_seed)
            draw(runs, len(every_seed), files, reel, preview=preview, force=force, quiet=quiet)
        finally:
            files.tell(as_json=as_json, quiet=quiet)


def _check_seconds(seconds: float | None, *, steps: int | None, resume: bool) -> None:
    """Raise UsageError for an option that does not work with --seconds."""
    if seconds is None:
        return
    if steps is not None:
        raise UsageError("--seconds says how many steps: leave --steps out.")
    if resume:
        raise UsageError("--resume needs a number of steps: give --steps, not --seconds.")
    if not 0 < seconds < 1e6:
        raise UsageError(f"--seconds is from above 0 to below 1000000, not {seconds:g}.")
