"""What the embedded generator was taught: the things that it draws, and the words for them.

`known.json` in the generator's folder holds `things`, English names, and `words`, every word of
their names in the languages that it was taught, without articles, colours and other small words.
"""

from __future__ import annotations

import json
import re
from functools import cache

from . import path

UNSPACED = re.compile(r"[぀-ヿ㐀-鿿]")  # kana and ideographs are not divided by spaces


@cache
def _known() -> dict[str, frozenset[str]]:
    file = path("generator") / "known.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    return {name: frozenset(words) for name, words in found.items()}


def things(word: str = "") -> list[str]:
    """The names of what the generator draws, sorted; with `word`, those that contain it."""
    return sorted(name for name in _known()["things"] if word.lower() in name)


def split(prompt: str) -> list[str]:
    """The words of a prompt, lower-case; emoji are words by themselves."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s,.;:!?\"'()|\-]", prompt.lower())


def known_words(prompt: str) -> list[str]:
    """The words of a prompt that name, or help to name, something that the generator draws."""
    words = _known()["words"]
    found = []
    for word in split(prompt):
        forms = {word, word.removesuffix("s"), word.removesuffix("es")}
        if forms & words or (UNSPACED.search(word) and _holds(word)):
            found.append(word)
    return found


@cache
def _unspaced() -> frozenset[str]:
    return frozenset(w for w in _known()["words"] if UNSPACED.search(w))


def _holds(word: str) -> bool:
    return any(known in word for known in _unspaced())
