"""The contract of a method, and how one is named.

A step method acts at each evaluation of the denoiser, so the pipeline itself is steered. A call
method runs the pipeline its own way, by `s(…)` of `with steer(pipe, …) as s`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import UsageError, close_matches
from .run import At, Outcome, Run

if TYPE_CHECKING:
    import torch

    from .steer import Steering
    from .travel import Travel

WINDOW = (0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Method:
    """When a method acts: at noise levels in `window` (1 pure noise, 0 clean), every `every`-th
    evaluation of these. UsageError for values out of range."""

    name: ClassVar[str]
    called: ClassVar[bool] = False  # whether only s(…) can run it

    window: tuple[float, float] = WINDOW
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise UsageError(f"The window lies in [0, 1], the lower first, not {self.window}.")
        self.at_least(1, "every")

    def at_least(self, low: float, *names: str) -> None:
        """UsageError unless these fields are finite numbers from `low`."""
        for name in names:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise UsageError(f"`{name}` must be at least {low}, not {value}.")

    @property
    def idle(self) -> bool:
        """Whether it leaves every bit as it is."""
        return False

    @property
    def taped(self) -> bool:
        """Whether a run of it can go on from a tape: it remembers nothing from step to step."""
        return False

    @property
    def runs(self) -> int:
        """How many runs of the pipeline a picture takes, about."""
        return 1

    @property
    def candidates(self) -> int:
        """How many samples of a picture it needs in the batch, or draws one after the other."""
        return 1

    def options(self) -> dict[str, object]:
        """Its fields that are not as they are by default: what `configure` makes it from."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def covers(self, noise: float) -> bool:
        """Whether a noise level is in the window."""
        return self.window[0] <= noise <= self.window[1]

    def check(self, pipe: object) -> None:
        """ClipguideError if a pipeline cannot be steered so."""

    def start(self, run: Run) -> Callable[[At], Outcome]:
        """What acts at each evaluation that is due in one run of the pipeline."""
        raise NotImplementedError

    def after(self, run: Run, at: At) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What takes the scheduler's new sample, at every evaluation, to the one that the pipeline
        gets; None is the sample itself. `at` is as the scheduler sees it."""
        return None

    def travelling(self, scheduler: object) -> Travel | None:
        """What repeats the scheduler's steps while the context is open."""
        return None

    def call(self, steering: Steering, **settings: object) -> object:
        """Run the pipeline with its own settings; what it returns."""
        return steering.sample(by=self, **settings)


def configure(methods: dict[str, type[Method]], method: str | Method, options: dict) -> Method:
    """A method by its name and options; None among these is what the method has by default.

    UsageError for a name or an option that is not there, with close matches.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(method, Method):
        if given:
            raise UsageError(f"{method.name} is configured already: set {', '.join(given)} in it.")
        return method
    if method not in methods:
        raise UsageError(f"There is no method {method!r}.{close_matches(method, methods)}")
    fields = [f.name for f in dataclasses.fields(methods[method])]
    for key in given:
        if key not in fields:
            raise UsageError(f"{method} has no option {key}: it has {', '.join(fields)}.")
    return methods[method](**given)
