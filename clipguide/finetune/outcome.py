"""The result of a fine-tuning: the selected weights, the table, the images and the folder.

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
    """The selected model, and how it was selected.

    `places` is the curve of WiSE-FT on the images set aside and on the weighed half of the
    retention set. `chosen` is the place on it. `before` and `after` (at `chosen`) are the results
    on the test images of the target, and on the other half of the retention set if there is one.
    """

    parts: Parts
    places: list[Place]
    chosen: Place
    target: Exam
    retention: Exam | None
    before: tuple[Result, Result | None]
    after: tuple[Result, Result | None]

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """Return (name, before, after) of each figure."""
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
    """Select the place between the old and the new weights, and set the model to it.

    It is the place with the best result on the images set aside, at which the retention on
    `weighed` falls by at most `allowed`. Without such a set, or without `wise_ft`, it is the end.
    The reported results are those on `test` and `retention`, which do not select.
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
    """Return the places of the test images that became right, and of those that became wrong."""
    target_B = outcome.target.target_B
    was_B, is_B = (result[0].found_B == target_B for result in (outcome.before, outcome.after))
    gained, lost = ((is_B & ~was_B), (was_B & ~is_B))
    return gained.nonzero().flatten().tolist(), lost.nonzero().flatten().tolist()
