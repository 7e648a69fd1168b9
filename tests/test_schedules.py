"""Schedules: their grammar, values and round trips."""

from __future__ import annotations

import pytest

from clipguide.errors import ClipguideError, UsageError
from clipguide.schedules import Schedule, schedule


@pytest.mark.parametrize(
    ("spec", "values"),
    [  # values at progress 0, 0.25, 0.5, 0.75, 1
        (0.2, (0.2, 0.2, 0.2, 0.2, 0.2)),
        (-3, (-3, -3, -3, -3, -3)),
        ((1, 0), (1, 0.75, 0.5, 0.25, 0)),
        ([0.5, 1.5], (0.5, 0.75, 1, 1.25, 1.5)),
        (lambda noise: noise**2, (1, 0.5625, 0.25, 0.0625, 0)),
        ("0.2", (0.2, 0.2, 0.2, 0.2, 0.2)),
        ("0.2@0..0.5", (0.2, 0.2, 0.2, 0, 0)),
        ("0.2@0.25..0.5", (0, 0.2, 0.2, 0, 0)),
        ("0.1>0.3@0..0.5", (0.1, 0.2, 0.3, 0, 0)),
        ("0>1", (0, 0.25, 0.5, 0.75, 1)),
        ("1@0..0.5,2@0.5..1", (1, 1, 2, 2, 2)),
        ("2@.5..1, 1>0 @ 0 .. .5", (1, 0.5, 2, 2, 2)),
        ("1@0..0.2,3@0.6..1", (1, 0, 0, 3, 3)),
        ("-1e-1", (-0.1,) * 5),
        ("+2E1@0...5", (20, 20, 20, 0, 0)),
    ],
)
def test_values(spec, values):
    at = schedule(spec)
    assert [at(progress) for progress in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(values)


def test_ends_are_exact():
    at = schedule("0.1>0.7@0.3..0.9")
    assert at(0.3) == 0.1 and at(0.9) == 0.7
    assert schedule("0.3")(0.7) == 0.3


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (0.2, "0.2"),
        (2, "2"),
        (1e-5, "1e-05"),
        ((1, 0.25), "1>0.25"),
        ("0.20 @ 0.0 .. 0.40", "0.2@0..0.4"),
        ("3@.6..1,1>0.5@0..0.2", "1>0.5@0..0.2,3@0.6..1"),
        ("0.1@0..1", "0.1"),
        (1 / 3, "0.3333333333333333"),
    ],
)
def test_round_trip(spec, text):
    made = schedule(spec)
    assert made.to_spec() == str(made) == text
    assert schedule(text) == made
    assert schedule(made) is made


def test_a_function_is_not_spelt_out():
    def fade(noise):
        return noise

    made = schedule(fade)
    assert isinstance(made, Schedule) and str(made) == "fade"
    assert schedule(made) is made and made(0.25) == 0.75
    with pytest.raises(UsageError, match="cannot be spelt"):
        made.to_spec()


@pytest.mark.parametrize(
    "spec",
    [
        "", " ", ",", "0.2,", "@0..1", "0.2@", "0.2@0", "0.2@0.4", "0.2@0..", "0.2@0-0.4",
        "a", "0.2@0.0.4", "0,2@0..1@", "1>", ">1", "1>2>3", "1@0..0.5@0.5..1", "nan", "inf", "0x1",
        "1.@0..1", "٣", "1_0", "0.2@0..0.4;1",
    ],
)  # fmt: skip
def test_nonsense(spec):
    with pytest.raises(UsageError, match="is no piece of a schedule: it is spelt like"):
        schedule(spec)


@pytest.mark.parametrize("spec", ["1@0..1.5", "1@-0.1..1", "1@0.5..0.5", "1@0.6..0.4", "1@2..3"])
def test_range_outside(spec):
    with pytest.raises(UsageError, match=r"must lie in 0\.\.1"):
        schedule(spec)


def test_overlap():
    with pytest.raises(UsageError, match=r"1@0\.\.0\.5 and 2@0\.4\.\.1 overlap"):
        schedule("1@0..0.5,2@0.4..1")
    with pytest.raises(UsageError, match="overlap"):
        schedule("1,2")


def test_not_finite():
    with pytest.raises(UsageError, match="must be finite"):
        schedule("1e999")


@pytest.mark.parametrize(
    "spec", [None, True, float("nan"), float("inf"), (1,), (1, 2, 3), (1, "2"), {}, (1, None)]
)
def test_no_schedule(spec):
    with pytest.raises(UsageError, match="A schedule is a finite number, a pair"):
        schedule(spec)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside(progress):
    with pytest.raises(ClipguideError, match="from 0 to 1"):
        schedule(0.2)(progress)


def test_progress_rounded_over_the_edge():
    assert schedule((1, 0))(1 + 1e-9) == 0 and schedule((1, 0))(-1e-9) == 1


@pytest.mark.parametrize("value", [None, "1", float("nan"), True])
def test_a_function_returns_a_number(value):
    with pytest.raises(ClipguideError, match="must return a finite number"):
        schedule(lambda noise: value)(0.5)
