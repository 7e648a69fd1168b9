"""What came of a fine-tuning: how much of it to keep, the table, the images and the folder.

Shapes: B images, N classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from ..clip import Parts
from ..errors import ClipguideWarning
from .exam import Exam, Result
from .run import Finetune, copy_state
from .wise_ft import ALPHAS, Place, choose, curve, interpolate


@dataclass(frozen=True)
class Outcome:
    """The model as it is kept, and how it came to be.

    `places` is WiSE-FT's curve on the images set aside and those of the retention set that are
    weighed by, `chosen` the place on it. Of `before` and `after` (which is at `chosen`) the results
    on the target's test images and on the rest of the retention set, where there is one.
    """

    parts: Parts
    places: list[Place]
    chosen: Place
    target: Exam
    retention: Exam | None
    before: tuple[Result, Result | None]
    after: tuple[Result, Result | None]

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """(what, before, after) of each figure."""
        for where, before, after in zip(("target", "retention"), self.before, self.after):
            for name in before.figures if before else ():
                yield f"{where}: {name}", before.figures[name], after.figures[name]


def select(
    fit: Finetune,
    test: Exam,
    retention: Exam | None,
    weighed: Exam | None,
    *,
    allowed: float = 0.01,
    wise_ft: bool = True,
) -> Outcome:
    """Chooses the place between the weights before and after, and leaves the model there.

    It is where the images set aside are classified best while the retention that is `weighed`
    falls by `allowed` at most; without such a set, or `wise_ft`, it is the end. What is
    reported are the images of `test` and of `retention`, by which nothing was chosen.
    """
    model, after = fit.parts.model, copy_state(fit.parts.model)

    def measure() -> tuple[float, float]:
        return fit.exam(fit.parts).main, weighed(fit.parts).main if weighed else 0.0

    alphas = ALPHAS if wise_ft and weighed else (0.0, 1.0)
    places = curve(model, fit.before, after, measure, alphas)
    chosen = choose(places, allowed=allowed) if len(alphas) > 2 else places[-1]
    results = []
    for place in (places[0], chosen):
        interpolate(model, fit.before, after, place.alpha)
        results.append((test(fit.parts), retention(fit.parts) if retention else None))
    if chosen.alpha == 0:
        warnings.warn(
            "Nothing of what was learned can be kept within the retention that is asked for: the "
            "model is the one from before. Allow more (--allow), or train less.",
            ClipguideWarning,
            stacklevel=2,
        )
    return Outcome(fit.parts, places, chosen, test, retention, *results)


def changed(outcome: Outcome) -> tuple[list[int], list[int]]:
    """The places of the target's test images that were wrong and are right, and the reverse."""
    target_B = outcome.target.target_B
    was_B, is_B = (result[0].found_B == target_B for result in (outcome.before, outcome.after))
    gained, lost = ((is_B & ~was_B), (was_B & ~is_B))
    return gained.nonzero().flatten().tolist(), lost.nonzero().flatten().tolist()
