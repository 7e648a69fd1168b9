"""Schedules: how a weight changes while an image is sampled.

Progress runs from 0 (pure noise) to 1 (clean). It is 1 − the noise level. The syntax of a schedule
is

    spec  = piece {"," piece}
    piece = value ["@" start ".." end]      0 <= start < end <= 1; 0..1 if it is left out
    value = number | number ">" number      constant, or linear from start to end

Examples are "0.2@0..0.4" and "0.1>0.3@0..0.5, 0.3@0.5..1". Where no piece applies, the value is 0.
Pieces do not overlap. Both ends belong to a piece. If one piece ends where another begins, the
later one counts there. A number has a digit on each side of its point, or none before it. Blanks
are ignored.
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
    """A linear piece from `first` at progress `start` to `last` at `end`."""

    first: float
    last: float
    start: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> float:
        """Return the value at a progress inside; exactly `first` and `last` at the ends."""
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
    """A function from progress in [0, 1] to a number. `schedule` makes one.

    It consists of pieces, or of a function of the noise level.
    """

    pieces: tuple[Piece, ...] = ()
    function: Callable[[float], float] | None = field(default=None)

    def __call__(self, progress: float) -> float:
        """Return the value at a progress. Raise ClipguideError if progress is not in [0, 1], or if
        a function returns no finite number."""
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
        """Return the text that `schedule` reads back as this schedule. Raise UsageError for a
        function."""
        if self.function is not None:
            raise UsageError("A schedule made of a function cannot be spelt out.")
        return ",".join(map(str, self.pieces))

    def __repr__(self) -> str:
        return f"Schedule({str(self)!r})"

    def __str__(self) -> str:
        if self.function is None:
            return self.to_spec()
        return getattr(self.function, "__name__", type(self.function).__name__)


Spec = float | Sequence[float] | str | Callable[[float], float] | Schedule


def schedule(spec: Spec) -> Schedule:
    """Make a Schedule, which is called with progress and returns a number.

    A text consists of pieces, with commas between them. A piece is a value, then `@` and two
    progresses with `..` between them, from 0 (pure noise) to 1 (the clean image). Without `@`, the
    piece applies to the whole run. A value is a number, or two numbers with `>` between them: the
    schedule then goes linearly from the first to the second. Pieces must not overlap. Where no
    piece applies, the value is 0. Where one piece ends and another begins, the later one counts.
    Examples:

    - "0.2" is constant.
    - "0.2@0..0.4" is 0.2 in the first 40 % of the run, and 0 in the rest.
    - "0.1>0.3@0..0.5, 0.3@0.5..1" grows from 0.1 to 0.3 in the first half, and stays at 0.3.

    Args:
        spec: a number, which is constant; a pair, which goes linearly from the first number at pure
            noise to the second at the clean image; a function of the noise level, which runs from 1
            to 0; or a text as above.

    Raises:
        UsageError: `spec` is none of these.
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
    """Return the shortest text that reads back as this number."""
    return repr(number).removesuffix(".0")
