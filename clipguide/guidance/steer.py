"""`with steer(pipe, "a red fox"): pipe("a fox")`: an unmodified diffusers pipeline, steered.

Methods that run the pipeline their own way do so by `s(…)` of `with steer(pipe, …) as s`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..clip import Clip, load_clip
from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..objectives import Generators, Objective, Similarity, as_objective, finished
from ..prompts import ImagePart, Prompt
from . import gradients, schedulers
from .auto import Choice, choose
from .calls import Calls
from .contract import Method, call_signature
from .decoders import Decoder
from .digest import digest
from .guidance_direction import GuidanceHook
from .latents import Family, default_clip, denoiser, execution_device
from .latents import check as check_family
from .methods import configure
from .report import Report, Step
from .session import Mode, Plan, Session
from .tap import tap
from .tape import Tape, replaying

SCORE_EVERY = 5


class Steering:
    """The context of `steer`. `report` tells of the latest run inside it; `attach` and `detach` are
    the context's two ends, for servers."""

    def __init__(self, pipe: object, plan: Plan, decoder: Decoder) -> None:
        self.pipe = pipe
        direction = GuidanceHook(pipe)
        self._session = Session(pipe, plan, decoder, direction)
        self._direction, self._decoder = direction, decoder
        self._stack: contextlib.ExitStack | None = None

    def __repr__(self) -> str:
        plan = self._session.plan
        where = "open" if self._stack else "closed"
        return f"<steering {type(self.pipe).__name__} by {plan.method}: {plan.objective}; {where}>"

    # ------------------------------------------------------------ what was asked for, and came
    @property
    def report(self) -> Report:
        """What was seen in the latest run."""
        return self._session.report

    @property
    def method(self) -> Method:
        """How it is steered."""
        return self._session.plan.method

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self._session.plan.objective

    @property
    def guide(self) -> Similarity | None:
        """The first similarity of the objective."""
        return self._session.plan.guide

    @property
    def judge(self) -> Similarity | None:
        """What scores only."""
        return self._session.plan.judge

    @property
    def decoder(self) -> str:
        """What decodes x0, as the argument of that name takes it: "auto" while that has not chosen,
        then its choice, with its rung of the ladder, as "vae:half"."""
        return self._decoder.name

    @property
    def prompt(self) -> object:
        """What is steered towards: one prompt or a list. Set, it holds from the next run on, read
        by the same CLIPs. UsageError if the objective is more than a similarity to prompts."""
        return None if self.guide is None else self.guide.prompts

    @prompt.setter
    def prompt(self, prompts: object) -> None:
        plan = self._session.plan
        if plan.guide is None or plan.objective is not plan.guide:
            raise UsageError(
                "Only where the objective is a similarity alone can its prompt be changed: open "
                "another context."
            )
        guide = plan.guide.towards(prompts)
        judge = plan.judge and plan.judge.towards(guide.prompts)
        self._session.plan = replace(
            plan, objective=guide, ranking=guide, guide=guide, judge=judge
        )

    # ------------------------------------------------------------ the context
    def __enter__(self) -> Steering:
        _check(self.pipe, self.method, self._decoder.family)
        session = self._session
        with contextlib.ExitStack() as stack:
            session.asked = session.acted = False
            session.tape = None
            self._tape = session.plan.tape
            self._decoder.open()
            stack.callback(self._decoder.close)
            stack.enter_context(self._direction)
            self._scheduler = stack.enter_context(
                tap(self.pipe, on_timesteps=session.set_timesteps, on_step=session.step)
            )
            stack.callback(session.end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, exception_type: type | None, *_: object) -> None:
        stack, self._stack = self._stack, None
        replaced = self.pipe.scheduler is not self._scheduler
        stack.close()
        if exception_type is not None:
            return
        session = self._session
        if replaced:
            session.warn("The pipeline's scheduler was replaced, and its steps were not steered.")
        elif session.asked and not session.acted:
            session.warn(
                f"No step was steered: none had a noise level in {self.method.window}."
            )

    def attach(self) -> Steering:
        """Enter the context."""
        return self.__enter__()

    def detach(self) -> None:
        """Leave the context."""
        self.__exit__(None)

    def expect(
        self, *, height: int | None = None, width: int | None = None, steps: int | None = None
    ) -> None:
        """Say, before the context, what is drawn in it, where the pipeline has no `__call__` that
        would: the size in pixels, which packed latents do not tell, and how many steps."""
        if height and width:
            self._decoder.hear(height, width)
        if steps is not None:
            self._session.expect(steps)

    # ------------------------------------------------------------ a call
    def __call__(self, *args: object, **settings: object) -> object:
        """Run the pipeline by the method: its own arguments, what it returns."""
        if self._stack is None:
            raise ClipguideError("Enter the context first: with steer(…) as s: s(…).")
        arguments = _bound(self.pipe, args, settings)
        session = self._session
        session.report = session.new_report()
        session.mode = Mode(None, called=True)
        with contextlib.ExitStack() as stack:
            stack.callback(self._idle)
            if self._tape is not None:
                stack.enter_context(self._taping(arguments))
            return self.method.call(Calls(session), **arguments)

    def _idle(self) -> None:
        self._session.end()
        self._session.mode = Mode(self.method)

    @contextlib.contextmanager
    def _taping(self, arguments: dict[str, object]):
        """The first call of the context is on the tape."""
        session, plan = self._session, self._session.plan
        tape, self._tape = Tape(self._tape), None
        weights = {k: v for k, v in self.pipe.components.items() if isinstance(v, torch.nn.Module)}
        scheduler = dict(self.pipe.scheduler.config)
        said = (plan.objective, plan.method, plan.judge, plan.generators, self._decoder.kind)
        tape.begin(digest(said, arguments, weights, scheduler, plan.score_every))
        session.tape = tape
        try:
            with replaying(tape, denoiser(self.pipe)):
                yield
        finally:
            session.tape = None


def _bound(pipe: object, args: tuple, settings: dict[str, object]) -> dict[str, object]:
    """The arguments of a call by name, those that a pipeline collects in **kwargs among them."""
    signature = call_signature(pipe)
    try:
        arguments = dict(signature.bind(*args, **settings).arguments)
    except TypeError as error:
        raise UsageError(f"{type(pipe).__name__} is not called so: {error}.") from None
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def steer(
    pipe: object,
    objective: Objective | Callable | str | Prompt | Sequence[str | Prompt],
    *,
    method: str | type[Method] | Method = "shortcut",
    clip: Clip | str | None = None,
    judge: Similarity | Clip | str | None = None,
    strength: object = None,
    window: tuple[float, float] | None = None,
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
        clip: the CLIP that prompts are read by; by default the one of the pipeline's family.
        judge: a CLIP that only scores, on the prompts of the objective; or a Similarity of its own.
        strength: length of a step as a fraction of rms(x0): a number, 0 changes no bit; or a
            schedule, as "0.1@0..0.5", over progress from 0 (pure noise) to 1 (clean); or a function
            of the noise level.
        window: the noise levels steered at, 1 pure noise, 0 clean.
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
    if score_every < 1:
        raise UsageError(f"score_every must be at least 1, not {score_every}.")
    decodes = Decoder(pipe, kind=decoder, tiny=tiny, budget=budget, memory=memory, like=like)
    _check(pipe, config, decodes.family)
    views = {"views": choice.views} if choice else {}
    with torch.inference_mode(False):  # what is made in it takes no part in gradients
        made, ignored = _objective(pipe, objective, clip, views, like)
        terms = list(made.terms())
        guide, sign = next(
            ((term, factor) for factor, term in terms if isinstance(term, Similarity)), (None, 1.0)
        )
        judge, more = _judge(pipe, judge, guide)
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
    )
    return Steering(pipe, plan, decodes)


def _check(pipe: object, method: Method, family: Family) -> None:
    """ClipguideError if the method does not fit the pipeline."""
    if method.of_images and family.video:
        raise ClipguideError(
            f"{method.name} ranks finished images, and {type(pipe).__name__} makes videos: use "
            "shortcut or particles."
        )
    if method.differentiates:
        gradients.check(pipe)
    method.check(pipe)


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
        clip = default_clip(pipe, like) if clip is None else clip
        return Similarity(_loaded(clip, pipe), objective, **views), []
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


def _loaded(clip: Clip | str, pipe: object) -> Clip:
    """A CLIP, where the pipeline computes."""
    return load_clip(clip, device=str(execution_device(pipe))) if isinstance(clip, str) else clip
