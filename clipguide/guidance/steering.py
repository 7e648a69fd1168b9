"""The context of `steer`. It patches the scheduler while it is open, and has the call `s(…)`."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch

from ..errors import ClipguideError, UsageError
from ..objectives import Objective, Similarity
from . import borrowed, gradients
from .calls import Calls
from .contract import Method
from .decoders import Decoder
from .digest import digest
from .guidance_direction import GuidanceHook
from .latents import Family
from .pipe_parts import call_signature, denoiser
from .plan import Mode, Plan
from .report import Report
from .session import Session
from .tap import kind, tap
from .tape import Tape, replaying


class Steering:
    """The context that `steer` returns. `report` describes the latest run inside it.

    If a `with` block does not fit your program, for example a server, call `attach` and `detach`.
    """

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
        """Return the report of the latest run."""
        return self._session.report

    @property
    def method(self) -> Method:
        """Return the method of steering."""
        return self._session.plan.method

    @property
    def objective(self) -> Objective:
        """Return the objective that is minimised."""
        return self._session.plan.objective

    @property
    def guide(self) -> Similarity | None:
        """Return the first similarity of the objective."""
        return self._session.plan.guide

    @property
    def judge(self) -> Similarity | None:
        """Return the judge, which only scores."""
        return self._session.plan.judge

    @property
    def decoder(self) -> str:
        """Return the decoder, as a value of the argument `decoder`, such as "vae:half".

        It is "auto" until "auto" has chosen.
        """
        return self._decoder.name

    @property
    def prompt(self) -> object:
        """Return the prompt or the list of prompts that the objective compares with.

        You can set it. The next run then steers towards the new prompts, with the same CLIPs.

        Raises:
            UsageError: you set it, and the objective is not a single Similarity.
        """
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
        check_fit(self.pipe, self.method, self._decoder.family)
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
        """Tell clipguide the size and the number of steps of the next run.

        Call this only if you write the sampling loop yourself, without the pipeline's `__call__`.

        Args:
            height: the height of the images in pixels. The shape of packed latents does not give
                it.
            width: the width of the images in pixels.
            steps: the number of steps.
        """
        if height and width:
            self._decoder.set_size(height, width)
        if steps is not None:
            self._session.expect(steps)

    # ------------------------------------------------------------ a call
    def __call__(self, *args: object, **settings: object) -> object:
        """Run the pipeline with the method. Take the arguments of the pipeline, and return its
        result."""
        if self._stack is None:
            raise ClipguideError("Enter the context first: with steer(…) as s: s(…).")
        arguments = _bound(self.pipe, args, settings)
        session = self._session
        session.report = session.new_report()
        session.mode = Mode(None, within_call=True)
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
        """Open a context in which the call is saved to the tape, or continues from it."""
        session, plan = self._session, self._session.plan
        takes = "generator" in call_signature(self.pipe).parameters
        if takes and arguments.get("generator") is None:
            raise UsageError(
                "A tape continues a run, which must begin from the same noise again: give "
                "`generator`, as torch.Generator().manual_seed(0)."
            )
        tape, self._tape = Tape(self._tape), None
        weights = {k: v for k, v in self.pipe.components.items() if isinstance(v, torch.nn.Module)}
        scheduler = kind(self.pipe.scheduler), dict(self.pipe.scheduler.config)
        active = borrowed.adapters(self.pipe)
        said = (plan.objective, plan.select, plan.method, plan.judge, plan.generators)
        said = (*said, self._decoder.asked, plan.score_every, plan.cfg_window)
        tape.begin(digest(said, arguments, weights, scheduler, active))
        if tape.decoder:  # the same decoder, even if less memory is free now
            self._decoder.take(tape.decoder)
        session.tape = tape
        try:
            with replaying(tape, denoiser(self.pipe)):
                yield
        finally:
            session.tape = None


def _bound(pipe: object, args: tuple, settings: dict[str, object]) -> dict[str, object]:
    """Return the arguments of a call by name, including those in **kwargs."""
    signature = call_signature(pipe)
    try:
        arguments = dict(signature.bind(*args, **settings).arguments)
    except TypeError as error:
        raise UsageError(f"{type(pipe).__name__} is not called so: {error}.") from None
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def check_fit(pipe: object, method: Method, family: Family) -> None:
    """Raise ClipguideError if the method does not fit the pipeline."""
    if method.of_images and family.video:
        raise ClipguideError(
            f"{method.name} ranks finished images, and {type(pipe).__name__} makes videos: use "
            "shortcut or particles."
        )
    if method.differentiates:
        gradients.check(pipe)
    method.check(pipe)
