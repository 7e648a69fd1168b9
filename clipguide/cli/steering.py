"""The options of `clipguide generate` that say how to steer: one flag for each of a method's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..guidance.contract import Method



def _option(text: str, metavar: str | None = None) -> object:
    return typer.Option(help=text, metavar=metavar, show_default=False)


Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="shortcut: CLIP's gradient moves each step's image. best-of: draw several, keep the "
        "best. particles: several at once, the good ones copied as they go. rollover: "
        "each step is tried again until it is better. lookahead: quick sketches say where to "
        "go. backprop: the gradient through the model, slow. embedding: the prompt's embedding is "
        "moved. noise: look for a better start, for "
        "models of 1 to 4 steps. auto: the one that gains most for --budget.",
    ),
]
Budget = Annotated[
    str | None,
    _option(
        "What auto may spend: a number, times the cost of plain sampling, or seconds an image. "
        "Of --method auto for it all, else of --decoder auto. [default: 4, else 1.2]",
        "X|SECONDSs",
    ),
]
Memory = Annotated[
    float | None,
    _option(
        "What the decoder and its gradient may take beside weights. [default: 4, or 80 % of what "
        "is free]",
        "GIB",
    ),
]
Cutouts = Annotated[
    int | None,
    _option("Crops of each step's image that CLIP sees, beside the whole. [default: 4]"),
]
Strength = Annotated[
    str | None,
    _option(
        "How hard CLIP steers: a number, 0 is plain sampling; or a schedule, as 0.1@0..0.5, over "
        "the progress from pure noise, 0, to the image, 1. [default: 0.1; rollover: 0]",
        "NUMBER|SCHEDULE",
    ),
]
Window = Annotated[
    str | None,
    _option(
        "Noise levels to steer at: 1 is pure noise, 0 the image. [default: 0.1,1]", "LOW,HIGH"
    ),
]
Every = Annotated[int | None, _option("Steer at every k-th step only. [default: 1; particles: 3]")]
Inner = Annotated[int | None, _option("Small moves a step instead of one. [default: 1]")]
Momentum = Annotated[
    float | None,
    _option("How much of the last step's direction to keep, 0 to 1. [default: 0; noise: 0.9]"),
]
Travel = Annotated[
    int | None, _option("Take each step this many times, noised back between. [default: 1]")
]
Fixed = Annotated[
    str | None,
    _option(
        "What stays as it is while a step's image is moved: the noisy sample, or its noise. "
        "[default: sample]",
        "sample|noise",
    ),
]
Number = Annotated[
    int | None, _option("Candidates, particles or sketches of an image. [default: 4]")
]
Quota = Annotated[int | None, _option("Tries of a step, in the mean. [default: 4]")]
Potential = Annotated[
    str | None,
    _option(
        "What a particle is worth: its gain, its best, or the sum so far. [default: difference]",
        "difference|max|sum",
    ),
]
Sharpness = Annotated[
    float | None,
    _option("How strictly the better ones are preferred. [default: particles 100, lookahead 4]"),
]
Rising = Annotated[
    float | None,
    _option("The share of the run after which --sharpness is whole; 0: at once. [default: 0]"),
]
Resampling = Annotated[
    str | None,
    _option("How particles are drawn anew. [default: systematic]", "systematic|residual|ssp"),
]
Enough = Annotated[
    float | None,
    _option(
        "End rollover's search when the score, minus the objective, is that high. [default: never]"
    ),
]
Finish = Annotated[
    int | None,
    _option("Draw only the best previews of best-of's candidates to the end. [default: all]"),
]
Look = Annotated[
    float | None,
    _option("The share of the steps after which --finish looks at previews. [default: 0.4]"),
]
Of = Annotated[
    str | None,
    _option("Which embedding is moved, that of the prompt or of none. [default: prompt]",
            "prompt|null"),
]
Threshold = Annotated[
    float | None,
    _option("Copy particles when fewer than this share of them matter. [default: 0.5]"),
]
Eta = Annotated[
    float | None,
    _option("Fresh noise a step where the sampler adds none, 0 to 1. [default: 1]"),
]
LookaheadSteps = Annotated[int | None, _option("Steps of each quick sketch. [default: 6]")]
Scale = Annotated[float | None, _option("How far to lean to the good sketches. [default: 1]")]
Temperature = Annotated[
    float | None, _option("How many sketches are near enough to count. [default: 0.1]")
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
    float | None, _option("Length of a round's step. [default: noise 0.05, embedding 0.1]")
]
Prior = Annotated[
    float | None, _option("With --no-white: how firmly the start keeps its norm. [default: 1]")
]
Patience = Annotated[
    int | None, _option("Give up after this many rounds without a gain. [default: 10]")
]
Rho = Annotated[float | None, _option("Weight of the gradient through the model. [default: 1]")]
Mu = Annotated[float | None, _option("Weight of the gradient past the model. [default: 0]")]
Decoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default=False,
        help="What shows CLIP each step's image. vae: the model's own decoder, the best and "
        "slowest. linear: a rough map to colours, the fastest. tiny: a small decoder, named by "
        "--tiny. auto: the vae where it costs little beside the model, else tiny or linear. "
        "vae:whole, vae:layers, vae:half, vae:tiles2 … take less and less memory; vae picks one of "
        "them. The finished image is the vae's in any case. [default: auto]",
    ),
]
Tiny = Annotated[
    str | None,
    _option(
        "A folder of a small decoder (a diffusers AutoencoderTiny), or hub: download TAESD of the "
        "model's family.",
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
