"""Schedules: how a weight changes while a picture is sampled.

Progress runs from 0 (pure noise) to 1 (clean); it is 1 − the noise level. A schedule is spelt

    spec  = piece {"," piece}
    piece = value ["@" start ".." end]      0 <= start < end <= 1; all of 0..1 without it
    value = number | number ">" number      constant, or linear from start to end

and is 0 where no piece is: "0.2@0..0.4", "0.1>0.3@0..0.5, 0.3@0.5..1". Pieces do not overlap; both
ends belong to a piece, and where one ends as another begins, the later one counts. A number has a
digit on each side of its point, or none before it; blanks are free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real

from .errors import ClipguideError, UsageError

_NUMBER = r"([+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)"
_PIECE = re.compile(
    rf"\s*{_NUMBER}\s*(?:>\s*{_NUMBER}\s*)?(?:@\s*{_NUMBER}\s*\.\.\s*{_NUMBER}\s*)?", re.ASCII
)
_HELP = 'it is spelt like "0.2", "0.2@0..0.4" or "0.1>0.3@0..0.5, 0.3@0.5..1"'
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Piece:
    """Linear from `first` at progress `start` to `last` at `end`."""

    first: float
    last: float
    start: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> float:
        """The value at a progress inside; `first` and `last` exactly at the ends."""
        if self.first == self.last:
            return self.first
        share = (progress - self.start) / (self.end - self.start)
        return (1 - share) * self.first + share * self.last

    def __str__(self) -> str:
        value = _spell(self.first)
        if self.last != self.first:
            value += f">{_spell(self.last)}"
        whole = (self.start, self.end) == (0, 1)
        return value if whole else f"{value}@{_spell(self.start)}..{_spell(self.end)}"


@dataclass(frozen=True)
class Schedule:
    """A number for each progress in [0, 1]: `schedule` makes one. Of pieces, or of a function of
    the noise level."""

    pieces: tuple[Piece, ...] = ()
    function: Callable[[float], float] | None = field(default=None)

    def __call__(self, progress: float) -> float:
        """The value at a progress. ClipguideError if progress is not in [0, 1], or if a function
        returns no finite number."""
        if not -_ROUNDING <= progress <= 1 + _ROUNDING:
            raise ClipguideError(f"Progress runs from 0 to 1: {progress} is outside.")
        progress = min(max(float(progress), 0.0), 1.0)
        if self.function is None:
            inside = [piece for piece in self.pieces if piece.start <= progress <= piece.end]
            return inside[-1].at(progress) if inside else 0.0
        value = self.function(1 - progress)
        if not _is_number(value):
            raise ClipguideError(
                f"The function of a schedule returned {value!r} at noise {1 - progress:g}: it must "
                "return a finite number."
            )
        return float(value)

    def to_spec(self) -> str:
        """The text that `schedule` reads back as this. UsageError for a function."""
        if self.function is not None:
            raise UsageError("A schedule made of a function cannot be spelt out.")
        return ",".join(map(str, self.pieces))

    def __str__(self) -> str:
        if self.function is None:
            return self.to_spec()
        return getattr(self.function, "__name__", type(self.function).__name__)


Spec = float | Sequence[float] | str | Callable[[float], float] | Schedule


def schedule(spec: Spec) -> Schedule:
    """A schedule of what was given: a callable from progress to a number.

    A number is constant; a pair goes linearly from its first at pure noise to its second at a
    clean picture; a function is given the noise level, 1 to 0, not the progress; a text is as the
    module says. UsageError for anything else.
    """
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, str):
        return Schedule(_read(spec))
    if callable(spec):
        return Schedule(function=spec)
    if _is_number(spec):
        return Schedule((Piece(float(spec), float(spec)),))
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and all(map(_is_number, spec)):
        return Schedule((Piece(float(spec[0]), float(spec[1])),))
    raise UsageError(
        f"A schedule is a finite number, a pair of them, a function of the noise level or a text, "
        f"not {spec!r}."
    )


def _read(text: str) -> tuple[Piece, ...]:
    pieces = sorted(map(_read_piece, text.split(",")), key=lambda piece: piece.start)
    for one, other in zip(pieces, pieces[1:]):
        if other.start < one.end:
            raise UsageError(f"In the schedule {text!r}, {one} and {other} overlap.")
    return tuple(pieces)


def _read_piece(text: str) -> Piece:
    match = _PIECE.fullmatch(text)
    if not match:
        raise UsageError(f"{text.strip()!r} is no piece of a schedule: {_HELP}.")
    first, last, start, end = (None if group is None else float(group) for group in match.groups())
    last = first if last is None else last
    if not (math.isfinite(first) and math.isfinite(last)):
        raise UsageError(f"The numbers of the schedule {text.strip()!r} must be finite.")
    if start is None:
        return Piece(first, last)
    if not 0 <= start < end <= 1:
        raise UsageError(
            f"The range of {text.strip()!r} must lie in 0..1 (0 is pure noise, 1 is clean), the "
            "lower end first."
        )
    return Piece(first, last, start, end)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _spell(number: float) -> str:
    """The shortest text that reads back as this number."""
    return repr(number).removesuffix(".0")
