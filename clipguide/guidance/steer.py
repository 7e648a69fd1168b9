"""Steer an unmodified diffusers pipeline: `with steer(pipe, "a red fox"): pipe("a fox")`.

This module checks the arguments, and makes the objective and the decoder. The context that `steer`
returns is in `steering`.
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
    """Return a context that steers the pipeline.

    In `with steer(pipe, …) as s`, call `s(…)` as you call `pipe(…)`. The methods that act only
    inside the sampler ("shortcut", "particles" and "rollover") also steer `pipe(…)` itself. Every
    argument is checked before anything is loaded or drawn. If `strength`, `window`, `every` or
    `inner` is None, the default of the method is used. A method without one of these four arguments
    raises an error if you give it.

    Args:
        pipe: a diffusers pipeline whose class and scheduler clipguide knows.
        objective: what to minimise. It is an Objective; a function or module that takes images and
            returns one loss for each; or prompts, which are one for all images or a list as the
            pipeline takes it. If the objective as a whole has a factor, as in `0.5 * objective`, or
            a schedule, the strength is multiplied by it.
        method: the name of a method, its class, or an instance such as `Particles(number=8)`.
            "auto" chooses the method with the highest gain for `budget`, and its decoder. If the
            objective is a prompt, "auto" also chooses the number of cutouts.
        clip: the CLIP that reads the prompts; by default that of the pipeline's family. A CLIP that
            is given by name, or by default, computes in bfloat16 if the denoiser has 16 bits or
            fewer, unless the name says otherwise, as in "mini@cuda:float32".
        judge: a CLIP that scores the images against the prompts of the objective and does not
            steer; or a Similarity.
        select: the objective that "best-of", "particles", "rollover", "lookahead" and the first
            drafts of "drafts" use in place of `objective`. It needs no gradient.
        strength: the length of a move, as a fraction of the rms of x0: a number, where 0 changes no
            bit; a schedule such as "0.1@0..0.5", where 0 is pure noise and 1 the clean image; or a
            function of the noise level.
        window: the noise levels to steer at: 1 is pure noise, 0 is clean.
        cfg_window: the noise levels at which the pipeline's own classifier-free guidance applies
            (Kynkäänniemi et al. 2024). At other levels, the guidance scale is 1. This saves no
            time. It works for pipelines that evaluate both prompts in one batch.
        every: compute the gradient at every k-th step of the window. The steps in between move
            along the last gradient; particles, lookahead and embedding do nothing there.
        inner: the number of moves in a step, which share its strength.
        decoder: what decodes x0. "vae" is the VAE of the pipeline. "tiny" is the decoder of `tiny`.
            "linear" is a linear map from latents to RGB. It is fitted to the VAE once, which takes
            about as long as decoding one image of 512 x 512 pixels.
            "auto" is the VAE if the estimated cost of its gradient fits `budget` and `memory`;
            otherwise a tiny decoder that is on this machine; otherwise the linear map. After "vae"
            and "tiny", a level of memory may follow. The levels need less and less memory:
            ":whole", ":single", ":layers", ":half", ":tiles2", ":tiles4" and ":tiles8", as in
            "vae:half". The page "Time and memory" explains them. A function takes latents as the
            VAE does and returns image_B3HW in [0, 1]. The report names the decoder. The VAE always
            decodes the finished image, for the score of the last step.
        tiny: an AutoencoderTiny for the latents of the pipeline; a folder of one; or "hub", which
            downloads the TAESD of the pipeline's family. A TAESD in the cache of the hub is found
            without this argument.
        memory: the memory in GiB that the decoder and its gradient may use besides the weights; by
            default 4, or 80 % of the free memory if that is less.
        like: for a community pipeline, a known class with the same latents, such as
            "StableDiffusionPipeline".
        score_every: score at every k-th step and at the last step. At these steps, the judge may
            reduce or stop the steering.
        trace: whether to score at every step, for `report.rows`. It changes no bit of an image.
        generators: the random generators of the views, on the CPU: a list with one generator for
            each image; or a single generator. The first image uses the single generator, and image
            i uses a new one, whose seed is that of the single generator plus i. By default, every
            image gets a generator with seed 0.
        on_step: a function that is called after each step.
        tape: a folder to which the first call of s(…) saves each step. If the folder has the steps
            of the same call, which was interrupted, the call continues after the last of them, with
            the same bits. The call needs `generator`. A method that keeps a state between steps
            starts again.
        budget: the highest cost, as a multiple of that of plain sampling, from 1. With method
            "auto", it limits the whole cost, and is 4 by default. Otherwise it limits the choice of
            decoder "auto", and is 1.2 by default.
        **options: options of the method, such as `number=8` for "particles".

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
    """Raise UsageError if the method needs a gradient and the objective has none."""
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
    """Return the dtype of a guide that is given by name: bfloat16 if the denoiser has 16 bits or
    fewer, otherwise float32."""
    dtype = getattr(denoiser(pipe), "dtype", None) or torch.float32
    return "bfloat16" if dtype.itemsize < 4 else "float32"
