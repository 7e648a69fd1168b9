"""The steering options of `clipguide generate`: one for each argument of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import among, registered, spelt

if TYPE_CHECKING:
    from ..guidance.contract import Method


def _option(text: str, metavar: str | None = None) -> object:
    complete = spelt(metavar)
    return typer.Option(help=text, metavar=metavar, show_default=False, autocompletion=complete)


NAMES = "shortcut best-of particles rollover lookahead backprop embedding drafts noise auto".split()
DECODERS = "auto vae linear tiny vae:whole vae:layers vae:half vae:tiles2".split()
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=registered("method", *NAMES),
        help="The method. shortcut: change the estimate of the clean latent (x0) in each step "
        "along CLIP's gradient. best-of: draw several samples and keep the best. particles: draw "
        "several samples at once; during sampling, replace bad ones by copies of good ones. "
        "rollover: repeat a step with new noise until the score rises. lookahead: first draw "
        "sketches, which are samples of a few steps, and move towards the good ones. backprop: "
        "take the gradient through the model; this is slow. embedding: change the embedding of "
        "the prompt. drafts: optimise that embedding, or the maps of the embedded generator, by "
        "gradients through short runs. noise: optimise the initial noise, for models of 1 to 4 "
        "steps. auto: the method with the highest gain for --budget, as measured on the embedded "
        "generator; there, it also chooses the number of steps, unless you give --steps. "
        "[default: shortcut; with the embedded generator and no steering option, nothing steers]",
    ),
]
Budget = Annotated[
    str | None,
    _option(
        "With --method auto: the budget, as a multiple of the cost of plain sampling, or as "
        "seconds for each image, such as 20s. Otherwise it sets the budget of --decoder auto. "
        "[default: 4, or 1.2 for --decoder auto]",
        "X|SECONDS",
    ),
]
Memory = Annotated[
    float | None,
    _option(
        "The memory for the decoder and its gradient, in GiB, in addition to the weights. "
        "[default: 4, or 80 % of the free memory if that is less]",
        "GIB",
    ),
]
Cutouts = Annotated[
    int | None,
    _option(
        "The number of crops (cutouts) of each step's image that CLIP sees, in addition to the "
        "whole image. [default: 4]"
    ),
]
Strength = Annotated[
    str | None,
    _option(
        "shortcut, backprop, rollover: the length of the move along the gradient in each step, as "
        "a fraction of the size of x0, the estimate of the clean latent. 0 is no move. A schedule "
        "such as 0.1@0..0.5 limits it to a part of the run; there 0 is the first step, and 1 the "
        "last. [default: 0.2, but 0 for rollover]",
        "NUMBER|SCHEDULE",
    ),
]
Window = Annotated[
    str | None,
    _option(
        "shortcut, particles, lookahead, backprop, embedding: steer only between these noise "
        "levels: 1 is pure noise, 0 is the finished image. [default: 0.1,1]",
        "LOW,HIGH",
    ),
]
Every = Annotated[
    int | None,
    _option(
        "shortcut, particles, lookahead, backprop, embedding: steer only at every N-th step. In "
        "between, shortcut and backprop move along the last gradient. "
        "[default: 1, but 3 for particles]"
    ),
]
Inner = Annotated[
    int | None,
    _option(
        "shortcut, backprop: the number of gradient updates in each step. They share the "
        "strength. [default: 1]"
    ),
]
Momentum = Annotated[
    float | None,
    _option(
        "shortcut, backprop, noise, drafts: the share of the previous direction that is kept, from "
        "0 to below 1. [default: 0, but 0.9 for noise, but 0.9 for drafts]"
    ),
]
Travel = Annotated[
    int | None,
    _option(
        "shortcut, backprop: take each step this many times, with new noise in between. "
        "[default: 1]"
    ),
]
Fixed = Annotated[
    str | None,
    _option(
        "shortcut, backprop: keep the noisy sample or the noise fixed while x0, the estimate of "
        "the clean latent, changes. [default: sample]",
        "sample|noise",
    ),
]
Number = Annotated[
    int | None,
    _option(
        "best-of, particles, lookahead, drafts: the number of samples for each image. With "
        "lookahead, the number of sketches for each PROMPT. [default: 4, but 8 for drafts]"
    ),
]
Quota = Annotated[
    int | None, _option("rollover: the largest mean number of proposals per step. [default: 4]")
]
Potential = Annotated[
    str | None,
    _option(
        "particles: weight a sample by the change of its score, by its highest score so far, or by "
        "the sum of its scores. [default: difference]",
        "difference|max|sum",
    ),
]
Sharpness = Annotated[
    float | None,
    _option(
        "particles, lookahead: how strongly better samples or sketches are preferred. "
        "[default: 100, but 4 for lookahead]"
    ),
]
Rising = Annotated[
    float | None,
    _option(
        "particles: raise --sharpness to its full value over this share of the run. With 0, it "
        "is full from the start. [default: 0]"
    ),
]
Resampling = Annotated[
    str | None,
    _option(
        "particles: the algorithm that resamples. [default: systematic]", "systematic|residual|ssp"
    ),
]
Enough = Annotated[
    float | None,
    _option(
        "rollover: if every image has a score of X or more, accept the first proposal of each "
        "later step. The score is that of --select. Without --select, it is the negative of the "
        "loss. If only the guide steers, that is never above 0, so give a negative X. [default: "
        "never]"
    ),
]
Finish = Annotated[
    int | None,
    _option(
        "best-of: finish only this many samples, selected by their unfinished images at --look. "
        "[default: all]"
    ),
]
Look = Annotated[
    float | None,
    _option(
        "best-of with --finish: score the unfinished images after this share of the steps, from 0 "
        "to 1. [default: 0.4]"
    ),
]
Of = Annotated[
    str | None,
    _option(
        "embedding, drafts: optimise the embedding of the prompt, that of the empty prompt, or the "
        "maps of the embedded generator. [default: prompt, but maps if there are any for drafts]",
        "prompt|null|maps",
    ),
]
Threshold = Annotated[
    float | None,
    _option(
        "particles: resample if the effective share of samples, (Σw)²/(N·Σw²) of their weights w, "
        "is below X. [default: 0.5]"
    ),
]
Eta = Annotated[
    float | None,
    _option(
        "particles, rollover: how much noise to add in each step of a sampler that adds none by "
        "itself, from 0 to 1. [default: 1]"
    ),
]
LookaheadSteps = Annotated[
    int | None, _option("lookahead: the number of steps of each sketch. [default: 6]")
]
Scale = Annotated[
    float | None, _option("lookahead: how far to move towards the good sketches. [default: 1]")
]
Temperature = Annotated[
    float | None,
    _option(
        "lookahead: how near a sketch must be to the sample to count. With a larger X, more "
        "sketches count. [default: 0.1]"
    ),
]
Iterations = Annotated[
    int | None,
    _option(
        "noise, drafts: the largest number of optimisation steps. [default: 20, but 3 for drafts]"
    ),
]
CandidateSteps = Annotated[
    int | None, _option("drafts: the number of steps of each candidate's draft. [default: 4]")
]
DraftSteps = Annotated[
    int | None, _option("drafts: the number of steps of a draft with gradients. [default: 4]")
]
Together = Annotated[
    int | None, _option("lookahead: the largest number of sketches in a batch. [default: 8]")
]
SketchScheduler = Annotated[
    str | None,
    _option(
        "lookahead: the scheduler of the sketches, a class of diffusers such as LCMScheduler. "
        "[default: that of the model]",
        "CLASS",
    ),
]
SketchCfg = Annotated[
    float | None,
    _option(
        "lookahead: the scale of classifier-free guidance for the sketches. [default: that "
        "of the image]"
    ),
]
Interpolant = Annotated[
    str | None,
    _option(
        "rollover on a flow model: use the noise levels of a variance-preserving diffusion, or "
        "those of the model. [default: vp]",
        "vp|own",
    ),
]
White = Annotated[
    bool | None,
    typer.Option(
        "--white/--no-white",
        help="noise: keep the statistics of white noise in each block of the spectrum. With "
        "--no-white, only --prior keeps the norm near that of white noise. [default: white]",
        show_default=False,
    ),
]
Rate = Annotated[
    float | None,
    _option(
        "noise, embedding, drafts: the length of an update, as a fraction of the rms of what is "
        "optimised. [default: 0.05, but 0.1 for embedding, but 0.04 for drafts]"
    ),
]
Prior = Annotated[
    float | None,
    _option(
        "noise with --no-white: the weight of the penalty that keeps the norm near that of "
        "white noise. [default: 1]"
    ),
]
Patience = Annotated[
    int | None,
    _option("noise: stop after this many optimisation steps without a gain. [default: 10]"),
]
Rho = Annotated[
    float | None, _option("backprop: the weight of the gradient through the model. [default: 1]")
]
Mu = Annotated[
    float | None,
    _option(
        "backprop: the weight of the gradient at x0, which does not pass "
        "through the model. [default: 0]"
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=among(*DECODERS),
        show_default=False,
        help="The decoder that turns the latents of each step into an image for CLIP. vae: the "
        "model's own decoder, the best and slowest. linear: an approximate map to colours, the "
        "fastest; it weakens steering. tiny: a small decoder, which --tiny names. auto: the vae "
        "if it is fast compared with the model, else a tiny decoder that is on this machine, else "
        "linear. vae:whole, vae:layers, vae:half and vae:tiles2 need less and less memory; vae "
        "takes the first that fits. The vae always decodes the finished image. [default: auto]",
    ),
]
Tiny = Annotated[
    str | None,
    _option(
        "The folder of a small decoder (a diffusers AutoencoderTiny), or hub, which downloads the "
        "TAESD of the model's family.",
        "FOLDER|hub",
    ),
]


def configured(method: str | None, options: dict) -> Method | str | None:
    """Return the method that the options describe, or None if there are none. Raise UsageError for
    an option that the method does not take."""
    if method is None:
        if all(value is None for value in options.values()):
            return None
        method = "shortcut"
    if method == "auto":
        return method
    from ..guidance.methods import configure

    if isinstance(options.get("window"), str):
        options = {**options, "window": levels(options["window"], "--window")}
    return configure(method, options)


def levels(text: str | None, option: str) -> tuple[float, float] | None:
    """Return two noise levels, or None if there is no text. Raise UsageError, with the name of the
    option, for any other text."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes two noise levels, as 0.2,0.9, not {text!r}.") from None
    return low, high
