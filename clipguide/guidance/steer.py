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
from .latents import denoiser, execution_device
from .methods import Shortcut, configure
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
    """A context in which `pipe(…)`, or `s(…)` by any method, is steered.

    Everything is checked here, before anything is loaded or drawn: the family of the pipeline
    first, then its scheduler, the method, the decoder, the CLIPs.

    Args:
        pipe: a diffusers pipeline whose class and scheduler are in the tables of this package.
        objective: what to go down: an Objective, or a function or module from images to a loss for
            each; or prompts: one for all images, or a list as the pipeline's. A factor or schedule
            of the whole objective scales the strength.
        method: one of METHODS by name, its class, or configured, as `Particles(number=8)`; or
            "auto", the one that gains most for `budget`, with its decoder, and of prompts with its
            cutouts.
        clip: the CLIP that prompts are read by; by default the one of the pipeline's family. Given
            by name it computes in bfloat16 beside a denoiser in 16 bits, unless the name says what
            else, as "mini@cuda:float32".
        judge: a CLIP that only scores, on the prompts of the objective; or a Similarity of its own.
        select: what picks among candidates in the objective's stead, where a method has any, and
            what particles, rollover and lookahead go by; it needs no gradient.
        strength: length of a step as a fraction of rms(x0): a number, 0 changes no bit; or a
            schedule, as "0.1@0..0.5", over progress from 0 (pure noise) to 1 (clean); or a function
            of the noise level.
        window: the noise levels steered at, 1 pure noise, 0 clean.
        cfg_window: the noise levels at which the pipeline's classifier-free guidance holds, as
            `window` has them: outside, the denoiser's output with the prompt alone is taken
            (Kynkäänniemi et al. 2024, a limited interval), for which nothing is saved. Of pipelines
            that evaluate both prompts in one batch.
        every: steer at every k-th step of the window.
        inner: moves a step, which share its strength.
        decoder: what decodes x0: "vae", the pipeline's own; "tiny", of `tiny`; "linear", a map
            from latents to RGB fitted to it in seconds; "auto", the VAE where the gradient through
            it fits the budget and the memory, by sizes, else a tiny one that is at hand, else the
            linear map; or a function of latents, as the VAE takes them, to image_B3HW in [0, 1].
            "vae" and "tiny" may have a rung of the ladder behind them, as "vae:half". The report
            says which it was. The score of the last step is by the VAE in any case.
        tiny: an AutoencoderTiny for the pipeline's latents, a local folder of one, or "hub", which
            downloads TAESD of the pipeline's family. One in the hub's cache is at hand anyway.
        memory: GiB that the decoder and its gradient may take beside weights; 4 by default, and
            80 % of what is free where that is less.
        like: the class whose latents the pipeline shares, as "StableDiffusionPipeline", for a
            pipeline of the community.
        score_every: score at every k-th step, and the last; the judge may stop the steering there.
        trace: score at every step, for `report.rows`; it changes no bit of an image.
        generators: one on the CPU for each image, for its views, or one for the first, which the
            others' are counted on from; by default all begin alike.
        on_step: called after each step.
        tape: a folder, made if need be, that keeps each step of the first call of s(…); where it
            has steps of that call already, as one that was stopped left them, it goes on from the
            last, with the same bits. What a method knows of earlier steps is not on it: methods
            with such a memory begin anew.
        budget: × the cost of plain sampling, from 1: for method "auto" of it all, 4 by default;
            else what decoder "auto" may come to, 1.2 by default.
        **options: the method's own, as `number=8` of particles.

    `strength`, `window`, `every` and `inner` are the method's own where they are None.

    Raises:
        ClipguideError: the pipeline cannot be steered, or is already.
        UsageError: a setting is out of range, or there is no default CLIP.
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
    """UsageError where a method takes the gradient of an objective that has none; `select` is what
    one without gradients goes by in its stead."""
    if not isinstance(objective, Objective) or method.idle or not method.needs_gradient:
        return
    if without := without_gradient(objective):
        raise UsageError(
            f"{without} has no gradient, and {method.name} needs one: take "
            f"{', '.join(FREE)}, or let it select among candidates (select=, --select)."
        )


def _interval(given: object, method: Method) -> tuple[float, float] | None:
    """The window of classifier-free guidance. UsageError for what is none."""
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
    """UsageError for what is not of the kind that `steer` says."""
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
    """The method, and where it is "auto" what was chosen."""
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
    """The objective, and what is ignored."""
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
    """The judge, and what is ignored."""
    if judge is None or isinstance(judge, Similarity):
        return judge, []
    if guide is None:
        return None, ["judge is ignored: the objective has no prompts to judge by."]
    return Similarity(_loaded(judge, pipe), guide.prompts, views=None), []


def _loaded(clip: Clip | str, pipe: object, dtype: str = "float32") -> Clip:
    """A CLIP, where the pipeline computes."""
    if not isinstance(clip, str):
        return clip
    return load_clip(clip, device=str(execution_device(pipe)), dtype=dtype)


def guide_dtype(pipe: object) -> str:
    """What a guide that is named computes in: in bfloat16 beside a denoiser in 16 bits or less."""
    dtype = getattr(denoiser(pipe), "dtype", None) or torch.float32
    return "bfloat16" if dtype.itemsize < 4 else "float32"
