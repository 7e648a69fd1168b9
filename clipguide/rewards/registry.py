"""The table of rewards by name, and what is asked of one: `pickscore`, `vlm=FOLDER:0.5`."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..objectives import Objective
from ..prompts import Prompt, shorten
from ..registry import Registry

MOST = 10.0  # a larger number behind the last colon is a port, or part of a path
FREE = ("best-of", "particles", "rollover", "lookahead")  # the methods that take no gradient
_WEIGHT = re.compile(r"(.*):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.DOTALL | re.IGNORECASE)

Scorer = Callable[[Sequence[Prompt]], Objective]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a reward is loaded.

    Args:
        where: weights, an image or an address, as the reward says; "" is its default.
        model: what goes with these; "" is its default.
        question: what a vision-language model is asked, with {} for the prompt; "" is its own.
        device, dtype: where it runs.
        trust_pickle: whether weights in a pickle may be read.
        timeout: seconds that an address may take for an answer.
        retries: how often it is asked again.
        wait: seconds before it is asked again, twice as long each time.
        key: what an address knows its users by; it is in no recipe.
    """

    where: str = ""
    model: str = ""
    question: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    trust_pickle: bool = False
    timeout: float = 30.0
    retries: int = 2
    wait: float = 0.5
    key: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UsageError(f"The time limit is a number of seconds above 0, not {self.timeout}.")
        if type(self.retries) is not int or not 0 <= self.retries <= 100:
            raise UsageError(f"retries is a whole number from 0 to 100, not {self.retries!r}.")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a name stands for.

    Args:
        load: loads it; what it gives makes an objective of prompts, minus the score. A property
            `score(image_B3HW)` or `score_pictures(images)` of that is used where it is there.
        gradient: whether the score has a gradient with respect to the image.
        reads: whether it reads the prompt.
        scores: what is scored, in a few words, with the range.
        default: what is loaded where nothing is named; "" where something must be.
        where: what may be named behind the =.
        package: the module that must be importable, beside clipguide's own dependencies.
        install: what pip installs for it.
        size, licence, source: of the weights that are meant.
        proof: what it was tested with.
    """

    load: Callable[[Settings], Scorer]
    gradient: bool
    reads: bool = True
    scores: str = ""
    default: str = ""
    where: str = ""
    package: str = ""
    install: str = ""
    size: str = ""
    licence: str = ""
    source: str = ""
    proof: str = ""


REWARDS: Registry[Kind] = Registry("reward")


def register_reward(
    name: str,
    load: Callable[[Settings], Scorer],
    *,
    gradient: bool,
    reads: bool = True,
    replace: bool = False,
    **facts: str,
) -> Kind:
    """Make a reward known by a name.

    Args:
        name: what `--reward` and `Reward` call it: letters, digits, - and _.
        load: takes Settings and loads; what it returns takes prompts and makes an Objective.
        gradient: whether the score has a gradient with respect to the image.
        reads: whether it reads the prompt.
        replace: whether a reward of that name may be replaced.
        **facts: the other fields of `Kind`, for the table of rewards.

    Raises:
        UsageError: the name is taken, or is none.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise UsageError(f"A reward's name has letters, digits, - and _, not {shorten(name)!r}.")
    kind = Kind(load=load, gradient=gradient, reads=reads, **facts)
    return REWARDS.register(name, kind, replace=replace)


@dataclass(frozen=True)
class Wanted:
    """A reward as it is asked for: its name, what is named behind the =, a model behind the #, and
    its weight."""

    name: str
    where: str = ""
    model: str = ""
    weight: float = 1.0

    @property
    def kind(self) -> Kind:
        """What the name stands for."""
        return REWARDS.find(self.name)

    def __str__(self) -> str:
        text = self.name + (f"={self.where}" if self.where or self.model else "")
        text += f"#{self.model}" if self.model else ""
        return text if self.weight == 1 else f"{text}:{self.weight:g}"


def wanted(text: str) -> Wanted:
    """What `NAME[=WHERE[#MODEL]][:WEIGHT]` asks for. Nothing is loaded.

    Raises:
        UsageError: there is no such reward, with close matches; its package is missing; it must be
            told where its weights are; or the weight is 0, or too large.
    """
    found = _WEIGHT.fullmatch(text)
    weight, named = 1.0, text
    if found and abs(float(found[2])) <= MOST:
        named, weight = found[1], float(found[2])
    elif found and found[1].strip() in REWARDS:
        raise UsageError(
            f"The weight of a reward is from −{MOST:g} to {MOST:g}, not {float(found[2]):g}."
        )
    name, _, rest = named.partition("=")
    where, _, model = rest.partition("#")
    asked = Wanted(name.strip(), where.strip(), model.strip(), weight)
    if not weight:
        raise UsageError(f"The reward {shorten(text)!r} has weight 0: leave it out.")
    check(asked)
    return asked


def check(asked: Wanted) -> None:
    """UsageError where a reward is not there, not named in full, or lacks its package."""
    kind = asked.kind
    if not (asked.where or kind.default):
        raise UsageError(f"{asked.name} must be told {kind.where}: {asked.name}=…")
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise UsageError(
            f"The reward {asked.name} needs the package {kind.package}, which is not installed: "
            f"pip install {kind.install or kind.package}."
        )
