"""What the embedded generator can draw, and warnings about prompts that ask for more.

`known.json` in the generator's folder has `things`, the English names of the objects that it draws,
and `words`, the words of their names in all its languages, without articles and colours.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from ..prompts import shorten
from . import path

UNSPACED = re.compile(r"[぀-ヿ㐀-鿿]")  # kana and ideographs are not divided by spaces
MOST = 3  # words that name something, in a prompt that it can draw
# The least sum of scores of an image that shows its prompt. Images of prompts of LONG words or more
# score lower, so they have another one: with LEAST, 21 % of the right images of two objects with
# colours had a warning. LEAST is passed by 96 % of the images that reviewers called good (`python
# -m training.evaluate eyes`), LEAST_IF_LONG by 94 % of those that the referee finds right (`python
# -m training.evaluate generator`).
LEAST = 0.35
LONG, LEAST_IF_LONG = 7, 0.31
# Words that name no object, or that the generator reads as a colour, size, place or style.
SMALL = frozenset(
    """a an the of in on at to and or with for from by near under over into onto off up down
    out about as is are was be being been that this these those it its his her their my your
    our one two three four some any no not very so too than then there here who which what
    while when where how all each between beside next left right top bottom front back
    behind above below inside outside around along across through during after before like
    big small large little tiny huge red orange yellow green blue purple pink brown black
    white grey gray color colour background style picture image photo photograph drawing
    painting icon illustration cartoon clip art emoji flat 3d simple glossy outlined sticker
    retro game cute old new golden un une el la le una ein eine der die das um uma o il lo
    een de het""".split()
)
ARTICLES = frozenset({"a", "an", "the"})
# Words between two objects that are separate in the image.
JOINING = frozenset(
    """and & plus y e et und и beside near next left right behind above below under chasing
    carrying eating holding riding wearing""".split()
)


def _known() -> dict[str, frozenset[str]]:
    """Return things, words, and those of the words that are of languages without spaces. All are
    empty without the file."""
    return _read(path("generator") / "known.json")


@cache
def _read(file: Path) -> dict[str, frozenset[str]]:
    if not file.is_file():
        return dict.fromkeys(("things", "words", "unspaced"), frozenset())
    found = json.loads(file.read_text(encoding="utf-8"))
    unspaced = frozenset(word for word in found["words"] if UNSPACED.search(word))
    return {**{name: frozenset(words) for name, words in found.items()}, "unspaced": unspaced}


def things(word: str = "") -> list[str]:
    """Return the sorted names of the objects that the generator draws; with `word`, those that
    contain it."""
    return sorted(name for name in _known()["things"] if word.lower() in name)


def split(prompt: str) -> list[str]:
    """Return the words of a prompt, in lower case. An emoji is a word."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s,.;:!?\"'()|\-]", prompt.lower())


def is_known(word: str) -> bool:
    """Return whether a word is part of a name of something that the generator draws."""
    words = _known()["words"]
    if {word, word.removesuffix("s"), word.removesuffix("es")} & words:
        return True
    return bool(UNSPACED.search(word)) and any(part in word for part in _known()["unspaced"])


def doubt(prompt: str, *, several: bool = False) -> str | None:
    """Return a warning if a prompt asks for something that the embedded generator cannot draw.

    The function looks only at the words. It warns if the prompt has no known word, more unknown
    words than known ones, at least MOST unknown words, more than MOST words that name something, or
    two objects that are separate.

    Args:
        prompt: the text that the generator gets.
        several: whether the memory has all objects of the prompt, so that it may name several.

    Returns:
        One sentence that says what is wrong and one that says what to do, or None.
    """
    words = [word for word in split(prompt) if word not in SMALL]
    if not words or not _known()["words"]:
        return None
    unknown = [word for word in words if not is_known(word)]
    known = len(words) - len(unknown)
    if not known or len(unknown) > known or len(unknown) >= MOST:
        said = shorten(", ".join(dict.fromkeys(unknown)))
        return f"mini does not seem to know {said!r}. {ADVICE}"
    if not several and (len(words) > MOST or _joined(prompt)):
        return (
            f"mini may not draw all of {shorten(prompt)!r}: it draws one thing, up to four that "
            f"it knows side by side, or one above another. {ADVICE}"
        )
    return None


def least(prompt: str) -> float:
    """Return the sum of scores below which `unlike` warns about an image of a prompt."""
    return LEAST if len(split(prompt)) < LONG else LEAST_IF_LONG


def unlike(
    prompt: str, guide_score: float, judge_score: float, *, several: bool = False
) -> str | None:
    """Return a warning if an image of the embedded generator does not seem to show its prompt.

    The function looks at the sum of the scores by the embedded guide and judge. Steering raises it
    also for an image that shows nothing, so the function is for images that nothing steered.
    `several` is that of `doubt`.

    Returns:
        One sentence that says what is wrong and one that says what to do. None if the sum is at
        least `least(prompt)`, or if `doubt` warns about the prompt.
    """
    if guide_score + judge_score >= least(prompt) or doubt(prompt, several=several):
        return None
    return (
        f"The image does not seem to show {shorten(prompt)!r}, by the scores of guide and judge. "
        "Try other words or another --seed; for photographs and scenes use --model."
    )


def _joined(prompt: str) -> bool:
    """Return whether a prompt names two separate objects, each by a known word.

    "a fork and knife" does not, because the training data have an object of that name.
    """
    said = split(prompt)
    if frozenset(said) - ARTICLES in _taught(_known()["things"]):
        return False
    joints = [i for i, word in enumerate(said) if word in JOINING]
    named = [i for i, word in enumerate(said) if word not in SMALL | JOINING and is_known(word)]
    return any(named[0] < i < named[-1] for i in joints) if named else False


@cache
def _taught(names: frozenset[str]) -> frozenset[frozenset[str]]:
    """Return the set of words of each name."""
    return frozenset(frozenset(split(name)) for name in names)


ADVICE = "`clipguide models --things` lists what it draws; for photographs and scenes use --model."
