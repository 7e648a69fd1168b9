"""What the embedded generator was taught, and whether a prompt asks for more.

`known.json` in the generator's folder holds `things`, the English names of what it draws, and
`words`, the words of their names in all languages that it was taught, without articles and colours.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from ..prompts import shorten
from . import path

UNSPACED = re.compile(r"[぀-ヿ㐀-鿿]")  # kana and ideographs are not divided by spaces
MOST = 3  # words for things, in a prompt that it can draw
# Of images that the referee names, 95 % have this sum of scores: `training.evaluate generator`.
LEAST = 0.34
# Words that name nothing to draw, or that the generator takes as colour, size, place or style.
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
# Words between two things that are separate in the image.
JOINING = frozenset(
    """and & plus y e et und и beside near next left right behind above below under chasing
    carrying eating holding riding wearing""".split()
)


def _known() -> dict[str, frozenset[str]]:
    """things, words, and of these the ones of languages without spaces; empty without the file."""
    return _read(path("generator") / "known.json")


@cache
def _read(file: Path) -> dict[str, frozenset[str]]:
    if not file.is_file():
        return dict.fromkeys(("things", "words", "unspaced"), frozenset())
    found = json.loads(file.read_text(encoding="utf-8"))
    unspaced = frozenset(word for word in found["words"] if UNSPACED.search(word))
    return {**{name: frozenset(words) for name, words in found.items()}, "unspaced": unspaced}


def things(word: str = "") -> list[str]:
    """The names of what the generator draws, sorted; with `word`, those that contain it."""
    return sorted(name for name in _known()["things"] if word.lower() in name)


def split(prompt: str) -> list[str]:
    """The words of a prompt, in lower case; an emoji is a word."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s,.;:!?\"'()|\-]", prompt.lower())


def is_known(word: str) -> bool:
    """Whether a word helps to name something that the generator draws."""
    words = _known()["words"]
    if {word, word.removesuffix("s"), word.removesuffix("es")} & words:
        return True
    return bool(UNSPACED.search(word)) and any(part in word for part in _known()["unspaced"])


def doubt(prompt: str) -> str | None:
    """Says that a prompt asks for what the embedded generator was not taught.

    It goes by words alone. A prompt is doubted if it has no known word, more unknown words than
    known ones, more things than fit into one image, or two things that are separate in it.

    Args:
        prompt: the text that the generator gets.

    Returns:
        One sentence and the next step, or None where there is no reason for doubt.
    """
    words = [word for word in split(prompt) if word not in SMALL]
    if not words or not _known()["words"]:
        return None
    unknown = [word for word in words if not is_known(word)]
    known = len(words) - len(unknown)
    if not known or len(unknown) > known or len(unknown) >= MOST:
        said = shorten(", ".join(dict.fromkeys(unknown)))
        return f"mini does not seem to know {said!r}. {ADVICE}"
    if len(words) > MOST or _joined(prompt):
        return (
            f"mini may not draw all of {shorten(prompt)!r}: it draws one thing, or up to four "
            f"of a kind. {ADVICE}"
        )
    return None


def unlike(prompt: str, guide_score: float, judge_score: float) -> str | None:
    """Says that an image by the embedded generator does not seem to show its prompt.

    It goes by the sum of the scores of the embedded guide and judge, which is for images that
    nothing steered: steering raises a score of an image that shows nothing. An emoji alone is no
    text to a CLIP.

    Returns:
        One sentence and the next step, or None where the sum is at least LEAST, or `doubt` has
        said it before.
    """
    if guide_score + judge_score >= LEAST or doubt(prompt) or not re.search(r"[^\W\d_]", prompt):
        return None
    return (
        f"The image does not seem to show {shorten(prompt)!r}, by the scores of guide and judge. "
        "Try other words or another --seed; for photographs and scenes use --model."
    )


def _joined(prompt: str) -> bool:
    """Whether a prompt names two things, each by a known word, that are separate in the image.

    "a fork and knife" does not: the generator was taught an image of that name.
    """
    said = split(prompt)
    if frozenset(said) - ARTICLES in _taught(_known()["things"]):
        return False
    joints = [i for i, word in enumerate(said) if word in JOINING]
    named = [i for i, word in enumerate(said) if word not in SMALL | JOINING and is_known(word)]
    return any(named[0] < i < named[-1] for i in joints) if named else False


@cache
def _taught(names: frozenset[str]) -> frozenset[frozenset[str]]:
    """The words of each name, in any order."""
    return frozenset(frozenset(split(name)) for name in names)


ADVICE = "`clipguide models --things` lists what it draws; for photographs and scenes use --model."
