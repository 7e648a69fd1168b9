"""`method="auto"`: use the settings with the highest measured gain for a budget.

`auto.json` is a table of settings that no other setting beats at the same or a lower cost. It has
the gain in the score of an independent CLIP, and the cost divided by that of plain sampling. Both
were measured on the embedded generator (`python -m benchmarks.steering table --auto`). Its denoiser
is small, so steering costs relatively more there than on a larger model: a run stays within the
budget, and rarely uses all of it. `models` are the fingerprints of what was measured. Without any,
the table is of an earlier generator.

Two kinds of rows hold for the embedded generator alone, and only in `generate`: those of fewer
steps, and those of a method that needs its maps. The others hold for any pipeline.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..views import Cutouts
from .contract import Method
from .methods import BestOf, configure

TABLE = Path(__file__).with_name("auto.json")
BUDGET = 4.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings of steering: `best_of` samples per image, each drawn by `each` in `steps` steps with
    the decoder `decoder` and `cutouts` crops besides the whole image. `steps` is None for the
    number that the call asks for. `cost` is a multiple of plain sampling.
    """

    each: Method
    best_of: int
    decoder: str
    cutouts: int
    cost: float
    steps: int | None = None

    @property
    def method(self) -> Method:
        """Return the method, with best-of if several samples are drawn."""
        return self.each if self.best_of == 1 else BestOf(number=self.best_of, each=self.each)

    @property
    def views(self) -> Cutouts:
        """Return the views of the objective."""
        return Cutouts(number=self.cutouts)

    def __str__(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.each.options().items())
        best = f", best of {self.best_of}" if self.best_of > 1 else ""
        steps = f", {self.steps} steps" if self.steps else ""
        return (
            f"{self.each.name}{options}{best}{steps}; decoder {self.decoder}, {self.cutouts} "
            f"cutouts: {self.cost:.1f} × the cost of plain sampling on {_measured_on()}"
        )


def choose(budget: float | None, *, own: bool = False) -> Choice:
    """Return the settings with the highest gain for a budget.

    Args:
        budget: the highest cost, as a multiple of that of plain sampling. None means 4.
        own: whether the embedded generator draws, and the number of its steps can be chosen.

    Raises:
        UsageError: the budget is below 1.
    """
    budget = BUDGET if budget is None else budget
    if not (math.isfinite(budget) and budget >= 1):
        raise UsageError(
            f"The budget is × the cost of plain sampling, so at least 1, not {budget}."
        )
    fits = [row for row in _rows() if row["cost"] <= budget and (own or _anywhere(row))]
    row = max(fits, key=lambda row: row["gain"])
    return Choice(
        each=configure(row["method"], row["options"]),
        best_of=row["best_of"],
        decoder=row["decoder"],
        cutouts=row["cutouts"],
        cost=row["cost"],
        steps=row["steps"] if own else None,
    )


def _anywhere(row: dict) -> bool:
    """Return whether a row holds for any pipeline."""
    return row["method"] == "shortcut" and row["steps"] is None


def times_plain(budget: str | float | None, plain_seconds) -> float | None:
    """Return a budget as a multiple of plain sampling. It is a number, or seconds for each image
    such as "30s", which are divided by the result of `plain_seconds()`. Raise UsageError for
    anything else, and for less than plain sampling."""
    if not isinstance(budget, str):
        return budget
    text = budget.strip()
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        raise UsageError(
            "A budget is a multiple of the cost of plain sampling, such as 4, or seconds for each "
            f"image, such as 30s, not {budget!r}."
        ) from None
    if not text.endswith("s"):
        return value
    if not 0 < value < math.inf:
        raise UsageError(f"A budget in seconds must be above 0, not {budget!r}.")
    plain = plain_seconds()
    if not value >= plain:
        raise UsageError(
            f"An image takes {plain:.1f} s here without any steering, so a budget of {text} is "
            "too small: give more seconds, or fewer steps."
        )
    return value / plain


def _measured_on() -> str:
    """Return a description of what the table was measured on."""
    return "the embedded generator" if _table().get("models") else "an earlier embedded generator"


def _rows() -> list[dict]:
    return _table()["rows"]


@functools.cache
def _table() -> dict:
    return json.loads(TABLE.read_text())
