"""What a call method gets: the pipeline, which it runs with or without steering and gradients."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from ..errors import ClipguideError, UsageError
from . import borrowed, gradients, schedulers
from .conditioning import Conditioning
from .contract import Method, Sampler
from .digest import attributes, digest, marks
from .generators import Given, catch_up
from .observers import ranks
from .pipe_parts import execution_device
from .plan import Begun, Mode, Previewed
from .report import Trace
from .run import Gradient
from .session import Session
from .tap import kind


class Calls(Sampler):
    """The runs of one call of s(…)."""

    def __init__(self, session: Session) -> None:
        self.pipe, self._session = session.pipe, session
        self._kept: list[Trace] | None = None

    @contextlib.contextmanager
    def _running(self, mode: Mode) -> Iterator[None]:
        """Open a context in which the pipeline runs once, in this mode."""
        session = self._session
        session.end()
        session.mode = mode
        try:
            yield
        finally:
            session.end()
            session.mode = Mode(None, within_call=True)

    def sample(
        self,
        *,
        by: Method | None,
        differentiable: bool = False,
        memory: object = None,
        behind: Given = None,
        **settings: object,
    ) -> object:
        at_first = None
        if behind is not None:
            at_first = functools.partial(catch_up, settings["generator"], behind)
        mode = Mode(by, differentiable, within_call=True, memory=memory, at_first=at_first)
        with self._running(mode):
            if differentiable:
                return gradients.run(self.pipe, settings)
            return self.pipe(**settings)

    def initial_noise(self, **settings: object) -> torch.Tensor:
        begins = Mode(None, within_call=True, only_begins=True)
        with self._running(begins), contextlib.suppress(Begun):
            self.pipe(**settings)
        sigma = float(getattr(self.pipe.scheduler, "init_noise_sigma", 1.0))
        if schedulers.row(self.pipe.scheduler).where is schedulers.TRIG:
            sigma *= self.pipe.scheduler.config.sigma_data  # which the pipeline multiplies it by
        return self._session.first_sample / sigma

    def conditioning(self, of: str) -> Conditioning:
        self._session.conditioning = Conditioning(self.pipe, of)
        return self._session.conditioning

    def preview(self, *, until: float, by: Method | None, **settings: object) -> torch.Tensor:
        with self._running(Mode(by, within_call=True, until=until)):
            try:
                self.pipe(**{**settings, "output_type": "latent"})
            except Previewed as seen:
                return seen.score_B
        raise ClipguideError(f"{type(self.pipe).__name__} took no step to look at.")

    @contextlib.contextmanager
    def borrowing(self, *, scheduler: str | None, adapter: str | None):
        session = self._session
        taps = {"on_timesteps": session.set_timesteps, "on_step": session.step}
        with contextlib.ExitStack() as stack:
            session.end()
            stack.callback(session.end)
            if adapter is not None:
                stack.enter_context(borrowed.adapter(self.pipe, adapter))
            if scheduler is not None:
                stack.enter_context(borrowed.scheduler(self.pipe, scheduler, **taps))
            yield

    def without(self, adapter: str | None) -> contextlib.AbstractContextManager:
        return borrowed.adapter(self.pipe, adapter, active=False)

    def identity(self, **settings: object) -> str | None:
        session, pipe = self._session, self.pipe
        parts = pipe.components.values()
        try:
            models = [part for part in parts if isinstance(part, torch.nn.Module)]
            weights = [(marks(part), attributes(part)) for part in models]
            plan, scheduler = session.plan, (kind(pipe.scheduler), dict(pipe.scheduler.config))
            how = plan.selecting, session.decoder.asked, plan.cfg_window, scheduler
            return digest(how, settings, weights, borrowed.adapters(pipe))
        except (UsageError, RuntimeError, TypeError):  # offloaded, quantised, or of an unknown kind
            return None

    def ending(self, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        self.sample(**{**settings, "output_type": "latent"}, by=None)
        x0 = self._session.last_x0
        _, loss_B = self._session.finishing(x0, selecting=True).loss(x0)
        return x0, -loss_B

    def through(
        self,
        of: torch.Tensor | Conditioning,
        *,
        gradient: bool = True,
        behind: Given = None,
        **settings: object,
    ) -> Gradient:
        settings = {**settings, "output_type": "latent"}
        if not gradient:
            self.sample(**settings, by=None, behind=behind)
            x0 = self._session.last_x0
            return Gradient(*self._session.finishing(x0).loss(x0), None)
        with gradients.through_denoiser(self.pipe):  # checkpointed parts run again for these
            self.sample(**settings, by=None, behind=behind, differentiable=True)
            x0 = self._session.last_x0
            leaf = of.shift if isinstance(of, Conditioning) else of
            return self._session.finishing(x0).gradient(x0, of=leaf)

    def rank(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        device = execution_device(self.pipe)
        return ranks(self._session.plan.selecting, image_B3HW.to(device).float(), len(image_B3HW))

    def candidate(self, score_B: torch.Tensor, better_B: torch.Tensor | None = None) -> None:
        report = self._session.report
        report.candidates.append(score_B)
        if better_B is not None:
            self._kept = report.keep(self._kept, better_B)
