"""The table of rewards, and the parser of a request such as `pickscore` or `vlm=FOLDER:0.5`."""

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

MOST = 10.0  # a larger number after the last colon is a port, or part of a path
FREE = ("best-of", "particles", "rollover", "lookahead")  # the methods that take no gradient
_WEIGHT = re.compile(r"(.*):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.DOTALL | re.IGNORECASE)

Scorer = Callable[[Sequence[Prompt]], Objective]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a reward.

    Args:
        where: what to load: weights, an image or the URL of a server. "" is the default of the
            reward.
        model: the model after `#`. "" is the default of the reward.
        question: the question to a vision-language model, with {} for the prompt. "" is the default
            of the reward.
        device: the device of the model, as torch names it.
        dtype: the dtype of the model's weights.
        trust_pickle: whether weights in a pickle may be read.
        timeout: the number of seconds to wait for an answer of a server.
        retries: the number of times that a request is repeated.
        wait: the number of seconds before the first repetition. It doubles each time.
        key: the API key for a server. No recipe contains it.
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
    """A reward of the table.

    Args:
        load: takes `Settings`, and returns a function. That function takes prompts and returns an
            Objective, whose loss is minus the score. If the objective has a method
            `score(image_B3HW)` or `score_pictures(images)`, it is used.
        gradient: whether the score has a gradient with respect to the image.
        reads: whether it reads the prompt.
        scores: what is scored, in a few words, with the range.
        default: the default of `where`; "" if the user must name something.
        where: what the user may name after the =.
        package: a module that must be importable, in addition to the dependencies of clipguide.
        install: what pip installs for it.
        size: the size of the default weights.
        licence: their licence.
        source: their paper.
        proof: what the implementation was compared with.
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
    """Register a reward under a name.

    Args:
        name: the name for `--reward` and `Reward`: letters, digits, - and _.
        load: a function that takes `Settings`, loads what the reward needs, and returns a function.
            That function takes the list of prompts and returns an Objective, whose loss is minus
            the score.
        gradient: whether the score has a gradient with respect to the image.
        reads: whether the reward reads the prompt.
        replace: whether this entry may replace one of the same name.
        **facts: texts about the reward. `default` is the default of `where`; without it, the user
            must type NAME=WHERE. `where` says what the user may type there, for error messages.
            `package` is a module that must be importable, and `install` what pip installs for it.
            `scores`, `size`, `licence`, `source` and `proof` are cells of the table of rewards on
            the page "Guides and rewards". `proof` is its last column: what the reward was compared
            with.

    Raises:
        UsageError: the name is taken, or has other characters.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise UsageError(f"A reward's name has letters, digits, - and _, not {shorten(name)!r}.")
    kind = Kind(load=load, gradient=gradient, reads=reads, **facts)
    return REWARDS.register(name, kind, replace=replace)


@dataclass(frozen=True)
class Wanted:
    """A request for a reward: its name, the text after the =, the model after the #, and the
    weight."""

    name: str
    where: str = ""
    model: str = ""
    weight: float = 1.0

    @property
    def kind(self) -> Kind:
        """Return the entry of the table."""
        return REWARDS.find(self.name)

    def __str__(self) -> str:
        text = self.name + (f"={self.where}" if self.where or self.model else "")
        text += f"#{self.model}" if self.model else ""
        return text if self.weight == 1 else f"{text}:{self.weight:g}"


def wanted(text: str) -> Wanted:
    """Parse `NAME[=WHERE[#MODEL]][:WEIGHT]`. Nothing is loaded.

    Raises:
        UsageError: there is no such reward (the message has close matches), its package is missing,
            WHERE is missing, or the weight is 0 or too
            large.
    """
    found = _WEIGHT.fullmatch(text)
    weight, named = 1.0, text
    if found and abs(float(found[2])) <= MOST:
        named, weight = found[1], float(found[2])
    elif found and found[1].strip() in REWARDS:
        raise UsageError(
            f"The weight of a reward is from −{MOST:g} to {MOST:g}, not {float(found[2]):g}."
        )
    name, equals, rest = named.partition("=")
    where, _, model = rest.partition("#")
    if equals and not rest.strip():
        raise UsageError(f"Nothing stands after the = of {shorten(text)!r}: leave the = out.")
    asked = Wanted(name.strip(), where.strip(), model.strip(), weight)
    if not weight:
        raise UsageError(f"The reward {shorten(text)!r} has weight 0: leave it out.")
    check(asked)
    return asked


def check(asked: Wanted) -> None:
    """Raise UsageError for an unknown reward, a missing WHERE or a missing package."""
    kind = asked.kind
    if not (asked.where or kind.default):
        raise UsageError(f"{asked.name} must be told {kind.where}: {asked.name}=…")
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise UsageError(
            f"The reward {asked.name} needs the package {kind.package}, which is not installed: "
            f"pip install {kind.install or kind.package}."
        )
