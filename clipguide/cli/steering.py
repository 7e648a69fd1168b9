"""The options of `clipguide generate` that say how to steer: one flag for each of a method's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import among, spelt

if TYPE_CHECKING:
    from ..guidance.contract import Method


def _option(text: str, metavar: str | None = None) -> object:
    complete = spelt(metavar)
    return typer.Option(help=text, metavar=metavar, show_default=False, autocompletion=complete)


NAMES = "shortcut best-of particles rollover lookahead backprop embedding noise auto".split()
DECODERS = "auto vae linear tiny vae:whole vae:layers vae:half vae:tiles2".split()
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=among(*NAMES),
        help="The method. shortcut: CLIP's gradient moves the image of each step. best-of: draw "
        "several images and keep the best. particles: draw several at once and copy the good "
        "ones on the way. rollover: repeat a step until the result is better. lookahead: "
        "quick sketches show the direction. backprop: take the gradient through the model; "
        "this is slow. embedding: move the embedding of the prompt. noise: search for a "
        "better initial noise, for models of 1 to 4 steps. auto: the method that gains most "
        "for --budget. [default: shortcut, but see --best-of]",
    ),
]
Budget = Annotated[
    str | None,
    _option(
        "The budget of --method auto: a multiple of the cost of plain sampling, or seconds an "
        "image. Without --method auto, the budget of --decoder auto. [default: 4, or 1.2 for "
        "--decoder auto]",
        "X|SECONDSs",
    ),
]
Memory = Annotated[
    float | None,
    _option(
        "The memory for the decoder and its gradient, besides the weights. [default: 4, or 80 % of "
        "the free memory if that is less]",
        "GIB",
    ),
]
Cutouts = Annotated[
    int | None,
    _option(
        "The number of crops of each step's image that CLIP sees, besides the whole image. "
        "[default: 4]"
    ),
]
Strength = Annotated[
    str | None,
    _option(
        "How strongly CLIP steers: a number, where 0 is plain sampling, or a schedule such as "
        "0.1@0..0.5 over the progress from pure noise, 0, to the image, 1. "
        "[default: 0.1; rollover: 0]",
        "NUMBER|SCHEDULE",
    ),
]
Window = Annotated[
    str | None,
    _option(
        "The noise levels at which CLIP steers, from 1, pure noise, to 0, the image. [default: "
        "0.1,1]",
        "LOW,HIGH",
    ),
]
Every = Annotated[int | None, _option("Steer at every N-th step only. [default: 1; particles: 3]")]
Inner = Annotated[
    int | None, _option("The number of small moves in each step, instead of one. [default: 1]")
]
Momentum = Annotated[
    float | None,
    _option(
        "The share of the last step's direction that is kept, from 0 to 1. [default: 0; noise: 0.9]"
    ),
]
Travel = Annotated[
    int | None, _option("Take each step this many times, and add noise in between. [default: 1]")
]
Fixed = Annotated[
    str | None,
    _option(
        "What stays fixed while the image of a step moves: the noisy sample, or its noise. "
        "[default: sample]",
        "sample|noise",
    ),
]
Number = Annotated[
    int | None,
    _option("The number of candidates, particles or sketches for each image. [default: 4]"),
]
Quota = Annotated[int | None, _option("The mean number of tries for each step. [default: 4]")]
Potential = Annotated[
    str | None,
    _option(
        "How particles are weighted: by the last gain, by the best score, or by the sum of all "
        "scores. [default: difference]",
        "difference|max|sum",
    ),
]
Sharpness = Annotated[
    float | None,
    _option("How strongly better candidates are preferred. [default: particles 100, lookahead 4]"),
]
Rising = Annotated[
    float | None,
    _option(
        "The share of the run after which --sharpness reaches its full value; 0 is from the "
        "start. [default: 0]"
    ),
]
Resampling = Annotated[
    str | None,
    _option(
        "The algorithm that resamples particles. [default: systematic]", "systematic|residual|ssp"
    ),
]
Enough = Annotated[
    float | None,
    _option(
        "Stop the search of rollover at this score, which is minus the objective. [default: never]"
    ),
]
Finish = Annotated[
    int | None,
    _option(
        "Finish only this many candidates of best-of, chosen by their previews. [default: all]"
    ),
]
Look = Annotated[
    float | None,
    _option("The share of the steps after which --finish looks at the previews. [default: 0.4]"),
]
Of = Annotated[
    str | None,
    _option(
        "Which embedding moves: that of the prompt, or that of the empty prompt. [default: prompt]",
        "prompt|null",
    ),
]
Threshold = Annotated[
    float | None,
    _option("Resample particles if fewer than this share of them carry the weight. [default: 0.5]"),
]
Eta = Annotated[
    float | None,
    _option(
        "The share of fresh noise in each step of a sampler that adds none, from 0 to 1. "
        "[default: 1]"
    ),
]
LookaheadSteps = Annotated[
    int | None, _option("The number of steps of each quick sketch. [default: 6]")
]
Scale = Annotated[float | None, _option("How far to move towards the good sketches. [default: 1]")]
Temperature = Annotated[
    float | None, _option("How widely the weight is spread over the sketches. [default: 0.1]")
]
Iterations = Annotated[
    int | None, _option("The number of rounds of the search for a better start. [default: 20]")
]
Together = Annotated[int | None, _option("Sketches drawn in a batch. [default: 8]")]
SketchScheduler = Annotated[
    str | None,
    _option(
        "The scheduler that draws the sketches, a class of diffusers', as LCMScheduler. "
        "[default: the model's]",
        "CLASS",
    ),
]
SketchCfg = Annotated[
    float | None,
    _option("Scale of the sketches' classifier-free guidance. [default: the image's]"),
]
Interpolant = Annotated[
    str | None,
    _option(
        "Noise levels that rollover visits on a flow model: of a variance-preserving interpolant, "
        "or the model's own. [default: vp]",
        "vp|own",
    ),
]
White = Annotated[
    bool | None,
    typer.Option(
        "--white/--no-white",
        help="Keep the start white in every block of its spectrum; without it, keep its norm "
        "likely, by --prior. [default: white]",
        show_default=False,
    ),
]
Iterations = Annotated[int | None, _option("Rounds of looking for a better start. [default: 20]")]
Rate = Annotated[
    float | None,
    _option("The length of the step of each round. [default: noise 0.05, embedding 0.1]"),
]
Prior = Annotated[
    float | None,
    _option("With --no-white: how strongly the start keeps the norm of plain noise. [default: 1]"),
]
Patience = Annotated[
    int | None, _option("Stop after this many rounds without a gain. [default: 10]")
]
Rho = Annotated[float | None, _option("The weight of the gradient through the model. [default: 1]")]
Mu = Annotated[
    float | None, _option("The weight of the gradient that bypasses the model. [default: 0]")
]
Decoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=among(*DECODERS),
        show_default=False,
        help="What decodes the image of each step for CLIP. vae: the model's own decoder, the best "
        "and slowest. linear: an approximate map to colours, the fastest. tiny: a small "
        "decoder, which --tiny names. auto: the vae if it is cheap next to the model, else "
        "tiny or linear. vae:whole, vae:layers, vae:half, vae:tiles2 and so on need less and "
        "less memory; vae takes the first that fits. The vae always decodes the finished "
        "image. [default: auto]",
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
    """The method that the flags describe; None where none does. UsageError names a flag that it
    does not take."""
    if method is None:
        if all(value is None for value in options.values()):
            return None
        method = "shortcut"
    if method == "auto":
        if given := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"auto sets {', '.join(given)} itself: leave it out.")
        return method
    from ..guidance.methods import configure

    if isinstance(options.get("window"), str):
        options = {**options, "window": levels(options["window"], "--window")}
    return configure(method, options)


def levels(text: str | None, option: str) -> tuple[float, float] | None:
    """Two noise levels, or None where there is no text. UsageError, with the option's name, for
    another text."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes two noise levels, as 0.2,0.9, not {text!r}.") from None
    return low, high
