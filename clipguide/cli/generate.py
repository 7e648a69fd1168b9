"""clipguide generate: draw an image of each prompt, which CLIP selects or steers."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import console, naming, options, recipes, steering, values, watching
from .files import Files
from .generating import draw, tell_of_easing


def generate(
    ctx: typer.Context,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw, one image for each PROMPT. | separates the parts of a PROMPT, and "
            ":0.5 after a part is its weight, from -10 to 10, as in 'a fox | snow:0.5'. A "
            "backslash before | or : makes it ordinary text.",
            show_default=False,
        ),
    ] = None,
    config: recipes.Config = None,
    trust: recipes.Trust = False,
    clip_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The prompt for CLIP: steer towards this text, in the syntax of PROMPT, and give "
            "PROMPT to the generator alone. [default: PROMPT]",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw something like this image, with the embedded generator. PROMPT says what to "
            "change it to. Without PROMPT, the image is paraphrased. For drawings and icons: a "
            "photograph becomes blurred areas of its colours.",
        ),
    ] = None,
    negative: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="The negative prompt of classifier-free guidance: what the image should not show.",
            show_default=False,
        ),
    ] = "",
    count: options.Count = 1,
    best_of: Annotated[
        int | None,
        typer.Option(
            help="Draw this many samples for each image, and keep the best. Each sample is steered "
            "like a single image, if anything steers. With --method best-of --number N, samples "
            "are not steered, and --finish and --look apply. [default: 1; with the embedded "
            "generator, 4 without a steering option or a weight in a PROMPT]"
        ),
    ] = None,
    method: steering.Name = None,
    strength: steering.Strength = None,
    window: steering.Window = None,
    every: steering.Every = None,
    inner: steering.Inner = None,
    momentum: steering.Momentum = None,
    travel: steering.Travel = None,
    fixed: steering.Fixed = None,
    number: steering.Number = None,
    quota: steering.Quota = None,
    potential: steering.Potential = None,
    sharpness: steering.Sharpness = None,
    rising: steering.Rising = None,
    resampling: steering.Resampling = None,
    threshold: steering.Threshold = None,
    enough: steering.Enough = None,
    finish: steering.Finish = None,
    look: steering.Look = None,
    of: steering.Of = None,
    eta: steering.Eta = None,
    lookahead_steps: steering.LookaheadSteps = None,
    scale: steering.Scale = None,
    temperature: steering.Temperature = None,
    together: steering.Together = None,
    sketch_scheduler: steering.SketchScheduler = None,
    sketch_cfg: steering.SketchCfg = None,
    interpolant: steering.Interpolant = None,
    iterations: steering.Iterations = None,
    candidate_steps: steering.CandidateSteps = None,
    draft_steps: steering.DraftSteps = None,
    rate: steering.Rate = None,
    white: steering.White = None,
    prior: steering.Prior = None,
    patience: steering.Patience = None,
    rho: steering.Rho = None,
    mu: steering.Mu = None,
    budget: steering.Budget = None,
    memory: steering.Memory = None,
    cutouts: steering.Cutouts = None,
    decoder: steering.Decoder = None,
    tiny: steering.Tiny = None,
    refine: Annotated[
        int,
        typer.Option(
            help="Optimise the latents of each finished image for N steps along CLIP's gradient, "
            "and keep the result if the judge prefers it."
        ),
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            help="The number of sampling steps. A distilled model needs few, such as 4. [default: "
            "30; with the embedded generator, 8 without a steering option or a weight in a "
            "PROMPT, 8 with --method drafts, and the choice of --method auto]"
        ),
    ] = None,
    seed: options.Seed = None,
    cfg: Annotated[
        float | None,
        typer.Option(help="The scale of classifier-free guidance. 1 is none, which a distilled "
        "model needs. [default: 4.0]"),
    ] = None,
    cfg_window: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Apply classifier-free guidance only between these noise levels: 1 is pure "
            "noise, 0 is the image. [default: all]",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIDE|WxH", help="The size in pixels. [default: that of the model]"),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The generator: mini, a folder in diffusers format, or a model of the Hugging "
            "Face hub such as stabilityai/sdxl-turbo.",
        ),
    ] = "mini",
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The CLIP that steers: mini, a folder in open_clip format, or MODEL/TAG of "
            "open_clip. [default: mini for the embedded generator, else that of the model's "
            "family]",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A second CLIP that has no effect on the gradient. If its score falls, clipguide "
            "reduces the steering. If nothing steers, clipguide keeps the sample with the highest "
            "sum of the scores of the guide and the judge; with --select or --finish, the judge "
            "does not count. '': no judge. [default: mini-judge for the embedded generator, else "
            "none]",
        ),
    ] = None,
    reward: options.SteerBy = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            autocompletion=options.registered("reward", *options.REWARDS),
            help="A reward that selects among samples. It does not steer, and needs no gradient. "
            "Repeatable.",
        ),
    ] = None,
    question: options.Question = "",
    trust_pickle: options.TrustPickle = False,
    safety_checker: Annotated[
        bool, typer.Option("--safety-checker", help="Keep the safety checker of the model.")
    ] = False,
    out: options.Out = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite files that exist.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Save every step next to the images until they are finished. It needs --seed. "
            "After a stop, give the same command again: it continues from the last step.",
        ),
    ] = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="Also write a sheet with all images.")
    ] = False,
    preview: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Every N steps, write a sheet with the current state of all images. Its name is "
            "that of the first image with -preview added. 0: never.",
        ),
    ] = 0,
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a video of the images side by side, one frame a step. FILE ends in "
            ".gif, .webp or .mp4. MP4 needs PyAV: pip install av.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also write a sheet that shows each image next to the "
            "same image without steering.",
        ),
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Score every step, and save the scores in the PNG. clipguide plot draws them.",
        ),
    ] = False,
    as_json: options.AsJson = False,
    device: options.Device = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=options.among(*options.DTYPES),
            help="The dtype of the weights: float32, float16 or bfloat16.",
        ),
    ] = "float32",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Draw each image as a batch of one, so that it has the same bits alone and among "
            "others.",
        ),
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw an image of each PROMPT. CLIP selects or steers it.

    By default, nothing steers the embedded generator. It draws 4 samples of each image, and the
    guide and the judge together select the best one. A steering option or a weight in a PROMPT
    makes it steer, except --strength 0 and --method best-of, which do not steer. Steering options
    are all options under "Steering" and "Options of one method" except --negative, --judge,
    --select, --question and --refine. With --best-of alone, nothing steers the samples, unless a
    PROMPT has weights. A real model is always steered, unless you give --strength 0 or --method
    best-of. Each PNG contains the recipe that made it. Nothing is overwritten without --force.
    """
    if not prompts and like is None:
        raise UsageError("There is no prompt: give one, or a recipe as --config FILE.")
    prompts = prompts or [""]
    recipes.check_trust(ctx, trust)
    values.check_run(count * len(prompts), preview=preview, resume=resume, seed=seed)
    _check_resume(resume, force=force, video=video)
    seed = secrets.randbelow(2**31) if seed is None else seed
    reel = None
    if video is not None:
        reel = watching.Reel(video, count * len(prompts), force=force)
    wanted = {"grid": grid, "compare": compare, "preview": preview > 0}
    named = [naming.in_place(prompt, like) for prompt in prompts]
    files = Files.plan(out, named, count, seed, wanted, force=force, resume=resume)
    files.trace = trace
    files.own_seeds = best_of is not None or method is not None
    models = {"model": model, "clip": clip, "judge": judge, "dtype": dtype}
    models["safety_checker"] = safety_checker
    models["key"] = os.environ.get(options.KEY, "")
    settings = {
        "guide": clip_prompt,
        "negative": negative,
        "count": count,
        "best_of": best_of,
        "steps": steps,
        "seed": seed,
        "cfg": cfg,
        "cfg_window": steering.levels(cfg_window, "--cfg-window"),
        "size": values.pixels(size),
        "budget": budget,
        "memory": memory,
        "cutouts": cutouts,
        "decoder": decoder,
        "tiny": tiny,
        "rewards": tuple(reward or ()),
        "select": tuple(select or ()),
        "question": question,
        "trust_pickle": trust_pickle,
        "like": like,
        "refine": refine,
        "exact": exact,
        "trace": trace,
        "frames": reel is not None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    asked = {
        "strength": strength,
        "window": window,
        "every": every,
        "inner": inner,
        "momentum": momentum,
        "travel": travel,
        "fixed": fixed,
        "number": number,
        "quota": quota,
        "potential": potential,
        "sharpness": sharpness,
        "rising": rising,
        "resampling": resampling,
        "threshold": threshold,
        "enough": enough,
        "finish": finish,
        "look": look,
        "of": of,
        "eta": eta,
        "steps": lookahead_steps,
        "scale": scale,
        "temperature": temperature,
        "together": together,
        "sketch_scheduler": sketch_scheduler,
        "sketch_cfg": sketch_cfg,
        "interpolant": interpolant,
        "iterations": iterations,
        "candidate_steps": candidate_steps,
        "draft_steps": draft_steps,
        "rate": rate,
        "white": white,
        "prior": prior,
        "patience": patience,
        "rho": rho,
        "mu": mu,
    }
    with console.plain_speech(drawing=True):
        try:
            models["device"] = device or values.best_device()
            settings["method"] = steering.configured(method, asked)
            draw(prompts, models, settings, files, reel, preview=preview, quiet=quiet)
        finally:
            files.tell(as_json=as_json, quiet=quiet)
    if not quiet:
        tell_of_easing(files)


def _check_resume(resume: bool, *, force: bool, video: Path | None) -> None:
    """Raise UsageError for an option that does not work with --resume."""
    if resume and force:
        raise UsageError("--resume keeps what --force would overwrite: leave one of them out.")
    if resume and video:
        raise UsageError("--video needs every step of one run: leave --resume out.")
