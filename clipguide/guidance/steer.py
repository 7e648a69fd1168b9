"""`with steer(pipe, "a red fox"): pipe("a fox")`: an unmodified diffusers pipeline, steered.

What is asked for is checked here, and made: the context itself is in `steering`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..clip import Clip, check_clip, load_clip
from ..errors import ClipguideWarning, UsageError
from ..objectives import (
    Generators,
    Objective,
    Similarity,
    as_objective,
    as_prompts,
    finished,
    without_gradient,
)
from ..prompts import ImagePart, Prompt
from ..rewards import FREE, Reward
from . import schedulers
from .auto import Choice, choose
from .contract import Method
from .decoders import Decoder
from .guides import default_clip
from .latents import check as check_family
from .methods import Shortcut, configure
from .pipe_parts import denoiser, execution_device
from .plan import Plan
from .report import Step
from .steering import Steering, check_fit

SCORE_EVERY = 5


def steer(
    pipe: object,
    objective: Objective | Callable | str | Prompt | Sequence[str | Prompt],
    *,
    method: str | type[Method] | Method = "shortcut",
    clip: Clip | str | None = None,
    judge: Similarity | Clip | str | None = None,
    select: Objective | Callable | None = None,
    strength: object = None,
    window: tuple[float, float] | None = None,
    cfg_window: tuple[float, float] | None = None,
    every: int | None = None,
    inner: int | None = None,
    decoder: str | Callable[[torch.Tensor], torch.Tensor] = "auto",
    tiny: torch.nn.Module | str | Path | None = None,
    memory: float | None = None,
    like: str | None = None,
    score_every: int = SCORE_EVERY,
    trace: bool = False,
    generators: Generators | torch.Generator | None = None,
    on_step: Callable[[Step], None] | None = None,
    tape: str | Path | None = None,
    budget: float | None = None,
    **options: object,
) -> Steering:
    """Return a context in which `pipe(…)` is steered, or `s(…)` by any method.

    Every argument is checked before anything is loaded or drawn: the family of the pipeline, its
    scheduler, the method, the decoder, the CLIPs. If `strength`, `window`, `every` or `inner` is
    None, the method's own value is used.

    Args:
        pipe: a diffusers pipeline whose class and scheduler are in the tables of this package.
        objective: what to minimise: an Objective; a function or module from images to one loss
            each; or prompts, one for all images or a list as the pipeline takes it. A factor or a
            schedule of the whole objective scales the strength.
        method: a name in METHODS, its class, or an instance such as `Particles(number=8)`. "auto"
            chooses the method that gains most for `budget`, its decoder, and for prompts the
            cutouts.
        clip: the CLIP that reads the prompts; by default that of the pipeline's family. If you give
            a name and the denoiser has 16 bits, the CLIP computes in bfloat16, unless the name says
            otherwise, as in "mini@cuda:float32".
        judge: a CLIP that scores on the prompts of the objective and does not steer; or a
            Similarity.
        select: the objective that selects among candidates, for methods that have candidates, and
            by which particles, rollover and lookahead work. It needs no gradient.
        strength: the length of a step as a fraction of rms(x0). A number (0 changes no bit); a
            schedule such as "0.1@0..0.5" over progress from 0 (pure noise) to 1 (clean); or a
            function of the noise level.
        window: the noise levels to steer at: 1 is pure noise, 0 is clean.
        cfg_window: the noise levels at which the pipeline's own classifier-free guidance applies.
            At other levels, the scheduler gets the output for the prompt without guidance, which
            saves no time. It works for pipelines that evaluate both prompts in one batch. Source:
            Kynkäänniemi et al. 2024, a limited interval.
        every: steer at every k-th step of the window.
        inner: the number of moves in a step, which share its strength.
        decoder: what decodes x0. "vae" is the pipeline's own. "tiny" is that of `tiny`. "linear" is
            a map from latents to RGB, which is fitted to the VAE in seconds. "auto" is the VAE if
            its gradient fits `budget` and `memory`, counted from sizes; otherwise a tiny decoder on
            this machine; otherwise the linear map. A function takes latents as the VAE does and
            returns image_B3HW in [0, 1]. A rung of the ladder may follow "vae" and "tiny", as in
            "vae:half". The report says which decoder it was. The VAE always decodes for the score
            of the last step.
        tiny: an AutoencoderTiny for the pipeline's latents; a local folder of one; or "hub", which
            downloads TAESD of the pipeline's family. One in the cache of the hub is found without
            it.
        memory: the memory in GiB that the decoder and its gradient may use besides the weights; by
            default 4, or 80 % of the free memory if that is less.
        like: for a community pipeline, a known class with the same latents, such as
            "StableDiffusionPipeline".
        score_every: score at every k-th step and at the last. The judge may stop the steering
            there.
        trace: whether to score at every step, for `report.rows`. It changes no bit of an image.
        generators: one on the CPU for each image, for its views; or one for the first image, from
            which those of the others are counted. By default all have the same seed.
        on_step: a function that is called after each step.
        tape: a folder that keeps each step of the first call of s(…). If it has steps of the same
            call, which was interrupted, the call continues from the last one, with the same bits.
            Methods that remember earlier steps start again.
        budget: a multiple of the cost of plain sampling, from 1. With method "auto" it limits the
            whole cost, 4 by default. Otherwise it limits the decoder "auto", 1.2 by default.
        **options: options of the method, such as `number=8` for particles.

    Raises:
        ClipguideError: the pipeline cannot be steered, or is already steered.
        UsageError: an argument is out of range, or there is no default CLIP.
    """
    check_family(pipe, like)
    schedulers.check(pipe.scheduler)
    named = {"strength": strength, "window": window, "every": every, "inner": inner, **options}
    if budget is not None and method != "auto" and decoder != "auto":
        raise UsageError("A budget is for method 'auto' or decoder 'auto', which choose by it.")
    config, choice = _method(method, named, budget)
    if choice is not None:
        decoder, budget = choice.decoder, None
    _check_kinds(score_every, generators, on_step, tape)
    cfg_window = _interval(cfg_window, config)
    select = None if select is None else as_objective(select)
    check_gradients(objective, config, select)
    decodes = Decoder(pipe, kind=decoder, tiny=tiny, budget=budget, memory=memory, like=like)
    check_fit(pipe, config, decodes.family)
    check_clip(judge)  # before the guide is loaded
    views = {"views": choice.views} if choice else {}
    with torch.inference_mode(False):  # what is made in it takes no part in gradients
        made, ignored = _objective(pipe, objective, clip, views, like)
        terms = list(made.terms())
        guide, sign = next(
            ((term, factor) for factor, term in terms if isinstance(term, Similarity)), (None, 1.0)
        )
        judge, more = _judge(pipe, judge, guide)
        for _, term in (*terms, *(select.terms() if select is not None else ())):
            if isinstance(term, Reward):
                term.load()
    for message in (*ignored, *more):
        warnings.warn(message, ClipguideWarning, stacklevel=2)
    plan = Plan(
        objective=made,
        ranking=finished(made),
        method=config,
        guide=guide,
        judge=judge,
        sign=-1.0 if sign < 0 else 1.0,
        score_every=score_every,
        trace=trace,
        generators=generators,
        on_step=on_step,
        tape=None if tape is None or not config.taped else Path(tape),
        choice="" if choice is None else str(choice),
        ignored=(*ignored, *more),
        select=select,
        cfg_window=cfg_window,
    )
    return Steering(pipe, plan, decodes)


def check_gradients(objective: object, method: Method, select: Objective | None = None) -> None:
    """Raise UsageError where a method takes the gradient of an objective that has none; `select` is
    what one without gradients goes by in its stead."""
    if not isinstance(objective, Objective) or method.idle or not method.needs_gradient:
        return
    if without := without_gradient(objective):
        name = f"{method.name}, as it is set," if method.name in FREE else method.name
        others = ", ".join(free for free in FREE if free != method.name)
        raise UsageError(
            f"{without} has no gradient, and {name} needs one: take {others}, or let it select "
            "among candidates (select=, --select)."
        )


def _interval(given: object, method: Method) -> tuple[float, float] | None:
    """Return the window of classifier-free guidance. Raise UsageError for an invalid one."""
    if given is None:
        return None
    try:
        window = Shortcut(window=given).window
    except UsageError:
        raise UsageError(f"cfg_window lies in [0, 1], the lower first, not {given}.") from None
    if method.differentiates:
        raise UsageError(f"{method.name} takes gradients through guidance: leave cfg_window out.")
    return window


def _check_kinds(
    score_every: object, generators: object, on_step: object, tape: object
) -> None:
    """Raise UsageError for an argument of another type than `steer` documents."""
    if type(score_every) is not int or score_every < 1:
        raise UsageError(f"score_every must be a whole number from 1, not {score_every!r}.")
    several = generators if isinstance(generators, (list, tuple)) else [generators]
    if generators is not None and not all(isinstance(g, torch.Generator) for g in several):
        raise UsageError(
            "generators is a torch.Generator, or a list of one for each image, not "
            f"{generators!r}."
        )
    if on_step is not None and not callable(on_step):
        raise UsageError(f"on_step is a function of a Step, not {on_step!r}.")
    if tape is not None and not isinstance(tape, (str, os.PathLike)):
        raise UsageError(f"The tape is a folder, not {tape!r}.")


def _method(
    method: str | type[Method] | Method, named: dict[str, object], budget: float | None
) -> tuple[Method, Choice | None]:
    """Return the method, and the choice of "auto"."""
    if method != "auto":
        return configure(method, named), None
    if given := [name for name, value in named.items() if value is not None]:
        raise UsageError(f"auto sets {', '.join(given)} itself: leave it out.")
    choice = choose(budget)
    return choice.method, choice


def _objective(
    pipe: object,
    objective: object,
    clip: Clip | str | None,
    views: dict[str, object],
    like: str | None,
) -> tuple[Objective, list[str]]:
    """Return the objective, and warnings about ignored parts."""
    prompts = (str, Prompt, ImagePart, list, tuple)
    if isinstance(objective, prompts) or not (
        isinstance(objective, Objective) or callable(objective)
    ):
        parsed = as_prompts(objective)  # before a CLIP is loaded
        clip = default_clip(pipe, like) if clip is None else clip
        return Similarity(_loaded(clip, pipe, guide_dtype(pipe)), parsed, **views), []
    ignored = [] if clip is None else ["clip is ignored: the objective has its own."]
    return as_objective(objective), ignored


def _judge(
    pipe: object, judge: Similarity | Clip | str | None, guide: Similarity | None
) -> tuple[Similarity | None, list[str]]:
    """Return the judge, and warnings about ignored parts."""
    if judge is None or isinstance(judge, Similarity):
        return judge, []
    if guide is None:
        return None, ["judge is ignored: the objective has no prompts to judge by."]
    return Similarity(_loaded(judge, pipe), guide.prompts, views=None), []


def _loaded(clip: Clip | str, pipe: object, dtype: str = "float32") -> Clip:
    """Return a CLIP on the device of the pipeline."""
    if not isinstance(clip, str):
        return clip
    return load_clip(clip, device=str(execution_device(pipe)), dtype=dtype)


def guide_dtype(pipe: object) -> str:
    """Return what a guide that is named computes in: in bfloat16 beside a denoiser in 16 bits or
    less."""
    dtype = getattr(denoiser(pipe), "dtype", None) or torch.float32
    return "bfloat16" if dtype.itemsize < 4 else "float32"
