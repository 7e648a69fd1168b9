"""`with steer(pipe, "a red fox"): pipe("a fox")`: an unmodified diffusers pipeline, steered.

Methods that run the pipeline their own way do so by `s(…)` of `with steer(pipe, …) as s`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..clip import Clip, load_clip
from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..objectives import Generators, Objective, Similarity
from ..prompts import Prompt
from . import parameterisation
from .auto import choose
from .backprop import Backprop
from .best_of import BestOf
from .decoders import Decoder
from .families import default_clip, execution_device
from .lookahead import Lookahead
from .method import Method, configure
from .noise import Noise
from .particles import Particles
from .report import Step
from .rollover import Rollover
from .shortcut import Shortcut
from .steering import Steering

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (BestOf, Shortcut, Particles, Rollover, Lookahead, Noise, Backprop)
}
SCORE_EVERY = 5


def steer(
    pipe: object,
    objective: Objective | str | Prompt | Sequence[str | Prompt],
    *,
    method: str | Method = "shortcut",
    clip: Clip | str | None = None,
    judge: Clip | str | None = None,
    strength: float | None = None,
    window: tuple[float, float] | None = None,
    every: int | None = None,
    inner: int | None = None,
    decoder: str | Callable[[torch.Tensor], torch.Tensor] = "auto",
    tiny: torch.nn.Module | str | Path | None = None,
    memory: float | None = None,
    like: str | None = None,
    score_every: int = SCORE_EVERY,
    trace: bool = False,
    generators: Generators | None = None,
    on_step: Callable[[Step], None] | None = None,
    tape: str | Path | None = None,
    budget: float | None = None,
) -> Steering:
    """A context in which `pipe(…)`, or `s(…)` by any method, is steered.

    Args:
        pipe: a diffusers pipeline whose class and scheduler are in the tables of this package.
        objective: what to go down, or prompts: one for all images, or a list as the pipeline's.
        method: one of METHODS by name, or configured, as `Particles(number=8)`; or "auto", the one
            that gains most for `budget`, with its decoder, and of prompts with its cutouts.
        clip: the CLIP that prompts are read by; by default the one of the pipeline's family.
        judge: a CLIP that only scores, on the prompts of the objective.
        strength: length of a step as a fraction of rms(x0); 0 changes no bit.
        window: the noise levels steered at, 1 pure noise, 0 clean.
        every: steer at every k-th step of the window.
        inner: moves a step, which share its strength.
        decoder: what decodes x0: "vae", the pipeline's own; "tiny", of `tiny`; "linear", a map
            from latents to RGB fitted to it in seconds; "auto", the VAE where the gradient through
            it fits the budget and the memory, by sizes, else a tiny one that is at hand, else the
            linear map; or a function of latents, as the VAE takes them, to image_B3HW in [0, 1].
            The report says which it was. The score of the last step is by the VAE in any case.
        tiny: an AutoencoderTiny for the pipeline's latents, a local folder of one, or "hub", which
            downloads TAESD of the pipeline's family. One in the hub's cache is at hand anyway.
        memory: GiB that the decoder and its gradient may take beside weights; 4 by default, and
            80 % of what is free where that is less.
        like: the class whose latents the pipeline shares, as "StableDiffusionPipeline", for a
            pipeline of the community.
        score_every: score at every k-th step, and the last; the judge may stop the steering there.
        trace: score at every step, for `report.rows`; it changes no bit of a picture.
        generators: one on the CPU for each image, for its views; by default all begin alike.
        on_step: called after each step.
        tape: a folder, made if need be, that keeps each step of the first run in the context; where
            it has steps of that run already, as one that was stopped left them, the run goes on
            from the last, with the same bits. What a method knows of earlier steps is not on it:
            methods with such a memory begin anew.
        budget: × the cost of plain sampling, from 1: for method "auto" of it all, 4 by default;
            else what decoder "auto" may come to, 1.2 by default.

    `strength`, `window`, `every` and `inner` are the method's own where they are None.

    Raises:
        ClipguideError: the pipeline cannot be steered, or is already.
        UsageError: a setting is out of range, or there is no default CLIP.
    """
    options = {"strength": strength, "window": window, "every": every, "inner": inner}
    choice = None
    if method == "auto":
        if given := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"auto sets {', '.join(given)} itself: leave it out.")
        choice = choose(METHODS, budget)
        method, decoder, budget = choice.method, choice.decoder, None
    elif budget is not None and decoder != "auto":
        raise UsageError("A budget is for method 'auto' or decoder 'auto', which choose by it.")
    config = configure(METHODS, method, {} if choice else options)
    if getattr(pipe, "scheduler", None) is None:
        raise ClipguideError(f"{type(pipe).__name__} has no scheduler, so nothing to steer by.")
    parameterisation.home(pipe.scheduler)
    sees = Decoder(pipe, kind=decoder, tiny=tiny, budget=budget, memory=memory, like=like)
    if score_every < 1:
        raise UsageError(f"score_every must be at least 1, not {score_every}.")
    ignored = []
    if isinstance(objective, Objective):
        if clip is not None:
            ignored.append("clip is ignored: the objective has its own.")
    else:
        clip = default_clip(pipe, like) if clip is None else clip
        views = {"views": choice.views} if choice else {}
        objective = Similarity(_loaded(clip, pipe), objective, **views)
    leaves = objective.leaves()
    guide = next((leaf for leaf in leaves if isinstance(leaf, Similarity)), None)
    if judge is not None and guide is None:
        ignored.append("judge is ignored: the objective has no prompts to judge by.")
        judge = None
    if judge is not None:
        judge = Similarity(_loaded(judge, pipe), guide.prompts, views=None)
    for message in ignored:
        warnings.warn(message, ClipguideWarning, stacklevel=2)
    return Steering(
        pipe,
        objective,
        method=config,
        guide=guide,
        judge=judge,
        decoder=sees,
        score_every=score_every,
        trace=trace,
        generators=generators,
        on_step=on_step,
        tape=None if tape is None or not config.taped else Path(tape),
        choice="" if choice is None else str(choice),
        ignored=tuple(ignored),
    )


def _loaded(clip: Clip | str, pipe: object) -> Clip:
    return load_clip(clip, device=str(execution_device(pipe))) if isinstance(clip, str) else clip
