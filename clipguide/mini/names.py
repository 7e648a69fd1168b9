"""Find the object and the colour that a prompt names.

The search looks at the head of the prompt: the words before the first preposition, comma or "and".
In "a tent in the forest" it is the tent. It takes, in this order,

1. the longest English name that begins in the head, and of two the last: "a fire truck" is a
   truck, and "a woman with red hair" is a "person with red hair";
2. instead of a shorter name, an object whose names and keywords have all words of the head: "a
   steam train" is a locomotive;
3. a name in another language;
4. the end of a compound: a steamboat is a boat, and a campfire a fire; then the noun of an
   adjective: a sunny day shows the sun;
5. a keyword that few objects have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .known import ARTICLES, SMALL, UNSPACED, split

COLOURS = "black white red green yellow blue brown purple pink orange grey".split()
# Words that end the head of a prompt.
ENDS = frozenset(
    """in on at with under over near by from into behind beside inside above below around through
    before after during between for wearing holding riding eating chasing carrying next""".split()
)
# Words before a second object, unless a colour is before them.
AND = frozenset("and & plus y e et und и".split())
# In "a cup of coffee", the object is the coffee. In "a bouquet of flowers" it is the bouquet.
PARTS = frozenset(
    """cup glass mug bottle bowl plate slice piece bunch pair loaf pot can jar bag set stack pile
    group photo picture image drawing painting icon emoji sticker art cartoon illustration portrait
    kind type""".split()
)
# Ends of English compounds that say what the object is. A seahorse is no horse.
HEADS = frozenset(
    """ball bear bell bike bird boat boot bread cake car cat chair clock coat dog fire fish flower
    hammer house knife shirt shoe tree truck""".split()
)
# Words for which a name may say "person".
PERSONS = frozenset("man woman boy girl guy lady".split())
# Words that say a colour if no other word does.
SHADES = {
    "chocolate": "brown", "crimson": "red", "navy": "blue", "scarlet": "red", "silver": "grey",
    "violet": "purple",
}  # fmt: skip
COUNTS = {"two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}
MANY = frozenset("five six seven eight nine ten many several both 5 6 7 8 9 10".split())
# What joins two objects, of which the first is to the left unless `right` matches.
BESIDE = re.compile(
    r"\b(?:(?:and|beside|next to)\b|to the (?:left|(?P<right>right)) of\b|(?:y|et|und|e)\b)|&|\+"
)
# What joins two objects, of which the first is above the second unless `under` matches.
ABOVE = re.compile(r"\b(?:on top of|on|over|above|(?P<under>under|underneath|below|beneath))\b")
LISTED = re.compile(r",|\band\b|&")  # between three or four objects
# What is behind the objects: a colour, or the night.
GROUND = re.compile(
    r"\b(?:(?:on|with|against|in front of) an? (?:\w+ ){0,2}?(?P<colour>\w+) "
    r"(?:back)?(?:ground|drop)|(?:at|by|in the) night)\b"
)
AMONG, BETWEEN = "; ", " | "  # names, and groups of names, in a line
MOST, LONGEST = 4, 300  # objects of a scene; characters of a prompt that are read for one
FEW = 2  # objects that a keyword may have to name them


class Named(NamedTuple):
    """What a prompt names: the numbers of the objects, and a colour, one of COLOURS, or None."""

    things: tuple[int, ...]
    colour: str | None


class Scene(NamedTuple):
    """Two to four objects that a prompt names, from left to right, or the first above the second if
    `above` is true, with the prompt of each, and the colour of the ground, one of COLOURS or
    "night"; or one object on such a ground."""

    objects: tuple[Named, ...]
    prompts: tuple[str, ...]
    ground: str | None = None
    above: bool = False

    @property
    def same(self) -> bool:
        """Return whether the objects are a number of one."""
        return len({*self.prompts}) == 1


class Names:
    """The names of objects and colours.

    Args:
        things: for each object a line with its English names, its names in other languages, and
            its English keywords, in lower case. `written` writes such a line.
        colours: words for colours in other languages than English, each with its English word.
    """

    def __init__(self, things: Iterable[str], colours: Mapping[str, str]) -> None:
        self._colours = {**dict(colours), **{c: c for c in COLOURS}, "gray": "grey"}
        self._english: dict[tuple[str, ...], set[int]] = {}
        self._foreign: dict[tuple[str, ...], set[int]] = {}
        self._unspaced: dict[str, set[int]] = {}
        self._words: dict[str, set[int]] = {}  # of names and keywords
        self._length: list[int] = []  # of the first English name
        self._own: list[set[str]] = []  # words of English names
        self._written: list[set[str]] = []  # the same, as they are written
        for number, line in enumerate(things):
            english, foreign, keywords = (part.split(AMONG) for part in line.split(BETWEEN))
            self._length.append(len(english[0]))
            self._own.append({word for name in english for word in _content(name)})
            self._written.append({word for name in english for word in split(name)})
            for name in foreign:
                if UNSPACED.search(name):
                    self._unspaced.setdefault(name, set()).add(number)
                else:
                    self._foreign.setdefault(_content(name), set()).add(number)
            for name in english:
                self._english.setdefault(_content(name), set()).add(number)
            for word in {w for text in (*english, *keywords) for w in _content(text)}:
                self._words.setdefault(word, set()).add(number)
        self._english.pop((), None)  # of empty groups
        self._foreign.pop((), None)

    def find(self, prompt: str) -> Named | None:
        """Return what a prompt names first. Return None if its head names no object that is known,
        or a number of them."""
        if UNSPACED.search(prompt):
            return self._without_spaces(prompt)
        words = list(_content(prompt.partition(",")[0]))
        start, end = self._head(words)
        if PERSONS & set(words[start:end]):  # "person with red hair" is a name: red is the hair
            general = ["person" if word in PERSONS else word for word in words]
            found = _longest(general, start, end, self._english)
            if found and found[1] - found[0] > 2:
                return Named(tuple(sorted(found[2])), None)
        found = (
            _longest(words, start, end, self._english)
            or _longest(words, start, end, self._foreign)
            or self._by_compound(words, start, end)
            or _longest([*map(_noun, words)], start, end, self._english)
            or self._by_keyword(words, start, end)
        )
        if found is None:
            return None
        first, last, things = found
        if things == self._foreign.get(tuple(words[first:last])):
            things = self._plainest(things)
        rest = words[:first] + words[last:]
        if (COUNTS.keys() | MANY) & set(words[:first]):
            return None
        things = self._nearest(things, words, start)
        if last - first < end - start:
            told = self._by_all(words[start:end])
            things = told & things or (told if len(told) <= FEW else set()) or things
        said = [*rest[: end - (last - first)], *words[first:last]]
        colour = next((self._colours[word] for word in said if word in self._colours), None)
        if colour is None:
            colour = next((SHADES[word] for word in words[start:first] if word in SHADES), None)
        return Named(tuple(sorted(things)), colour)

    def scene(self, prompt: str) -> Scene | None:
        """Return the objects of a prompt that names two, or three or four in a list, or a number
        from 2 to 4 of one, or one on a ground. Return None for any other prompt, or if an object is
        not known."""
        prompt = prompt[:LONGEST].lower()
        text, ground = self._ground(prompt)
        if parts := self._list(text):
            return self._side_by_side(parts, ground)
        text, ground = self._ground(prompt.partition(",")[0])
        for joint in BESIDE.finditer(text):
            parts = [text[: joint.start()].strip(), text[joint.end() :].strip()]
            if joint["right"]:
                parts.reverse()
            beside = self._side_by_side(parts, ground)
            if beside and _content(text) not in self._english:
                return beside
        if BESIDE.search(text):
            return None
        if stacked := self._stacked(text, ground):
            return stacked
        if (found := self.find(text)) is not None:  # a number may be part of its name
            return None if ground is None else Scene((found,), (text,), ground)
        found, told, number = self._counted(text)
        return Scene((found,) * number, (told,) * number, ground) if found and number else None

    def _counted(self, text: str) -> tuple[Named | None, str, int]:
        """Return what "three red foxes" names, "a red fox", and 3. The number is 0 without one."""
        words = split(text)
        place = next((k for k, word in enumerate(words) if word in COUNTS), None)
        found = self.find(text)
        if found is None and place is not None:
            rest = words[place + 1 :]
            told = f"a {' '.join(map(singular, rest))}"
            return self.find(" ".join(rest)), told, COUNTS[words[place]]
        return found, text, 0

    def _side_by_side(self, parts: Sequence[str], ground: str | None) -> Scene | None:
        """Return the scene of several objects, each in its number, or two of it if it is named in
        the plural, as in "a moon and stars", as long as there are at most four."""
        found = [self._counted(part) for part in parts]
        things = [named for named, _, _ in found]
        left = MOST - sum(number or 1 for _, _, number in found)
        if not all(things) or len({*things}) < len(things) or left < 0:
            return None
        objects, prompts = [], []
        for named, told, number in found:
            last = split(told)[-1]
            own = any(last in self._written[k] for k in named.things)  # its name is a plural
            if not number and left and singular(last) != last and not own:
                told, number, left = f"a {' '.join(map(singular, split(told)))}", 2, left - 1
            objects += [named] * (number or 1)
            prompts += [told] * (number or 1)
        return Scene(tuple(objects), tuple(prompts), ground)

    def _list(self, text: str) -> list[str]:
        """Return the parts of a list, such as "a cat, a dog and a fish": three or more, each with
        an article or a number, or a name, so that no style is taken for an object."""
        parts = [part.strip() for part in LISTED.split(text) if part.strip()]
        if len(parts) < 3 or not LISTED.search(text.replace(",", " ")):
            return []
        said = ARTICLES | COUNTS.keys()
        told = all({*split(p)[:1]} & said or _content(p) in self._english for p in parts)
        return parts if told else []

    def _stacked(self, text: str, ground: str | None) -> Scene | None:
        """Return the scene of "a cat on a sofa", unless a name says so, as "heart on fire" does."""
        words = list(_content(text))
        name = _longest(words, 0, len(words), self._english)
        if name and ABOVE.search(" ".join(words[name[0] : name[1]])):
            return None
        for joint in ABOVE.finditer(text):
            parts = [text[: joint.start()].strip(), text[joint.end() :].strip()]
            if joint["under"]:
                parts.reverse()
            found = [self.find(part) for part in parts]
            if all(found) and not {*found[0].things} & {*found[1].things}:
                return Scene(tuple(found), tuple(parts), ground, above=True)
        return None

    def _ground(self, text: str) -> tuple[str, str | None]:
        """Return a text without its ground, and the ground. The name of an object may say "at
        night"."""
        words = list(_content(text))
        name = _longest(words, 0, len(words), self._english)
        said = GROUND.search(text)
        if said is None or (name and "night" in words[name[0] : name[1]]):
            return text, None
        ground = "night"
        if said["colour"] is not None:
            ground = self._colours.get(said["colour"], SHADES.get(said["colour"]))
        rest = " ".join((text[: said.start()] + text[said.end() :]).split())
        return (text, None) if ground is None else (rest, ground)

    def _nearest(self, things: set[int], words: list[str], start: int) -> set[int]:
        """Return those objects of the same name whose names have the most words of the prompt: "an
        umbrella in the rain"; and of them those with the keyword before "of": "a slice of cake"."""
        shared = {k: len(self._own[k] & {*words}) for k in things}
        things = {k for k in things if shared[k] == max(shared.values())}
        for word in PARTS & {*words[:start]}:
            things = self._words.get(word, set()) & things or things
        return things

    def _head(self, words: list[str]) -> tuple[int, int]:
        """Return the first word of the head and the word after its last."""
        start = 0
        for i, word in enumerate(words):
            if word == "of" and not start and PARTS & set(words[:i]) and i + 1 < len(words):
                start = i + 1
            elif i > start and (word in ENDS or word == "of" or self._joins(words, i)):
                return start, i
        return start, len(words)

    def _joins(self, words: list[str], i: int) -> bool:
        """Return whether word `i` joins two objects. In "black and white" it does not."""
        return words[i] in AND and i > 0 and words[i - 1] not in self._colours

    def _by_all(self, head: list[str]) -> set[int]:
        """Return the objects that have all words of a head, of which there must be two."""
        told = [w for w in head if w not in SMALL and w not in self._colours]
        sets = [self._words.get(word) or self._words.get(_noun(word), set()) for word in told]
        return set.intersection(*sets) if len(told) > 1 else set()

    def _by_keyword(
        self, words: list[str], start: int, end: int
    ) -> tuple[int, int, set[int]] | None:
        """Return the place and the objects of the last word that is a keyword of few."""
        for i in reversed(range(start, end)):
            told = words[i] not in SMALL and words[i] not in self._colours
            if told and 0 < len(found := self._words.get(words[i], set())) <= FEW:
                return i, i + 1, found
        return None

    def _by_compound(
        self, words: list[str], start: int, end: int
    ) -> tuple[int, int, set[int]] | None:
        """Return the place and the objects of the last compound whose end is a name."""
        for i in reversed(range(start, end)):
            for cut in range(3, len(words[i]) - 2):
                things = self._english.get((words[i][cut:],))
                if words[i][cut:] in HEADS and things:
                    return i, i + 1, things
        return None

    def _without_spaces(self, prompt: str) -> Named | None:
        """Return what a prompt names in a language that does not divide words by spaces."""
        found = max((name for name in self._unspaced if name in prompt), key=len, default=None)
        if found is None:
            return None
        rest = prompt.replace(found, " ", 1)
        said = max((word for word in self._colours if word in rest), key=len, default=None)
        things = self._plainest(self._unspaced[found])
        return Named(tuple(sorted(things)), self._colours.get(said))

    def _plainest(self, things: set[int]) -> set[int]:
        """Return the object whose English name is the shortest, of those that a word of other
        languages names: for 車 a car, and no ambulance."""
        return {min(sorted(things), key=self._length.__getitem__)}


def _longest(
    words: list[str], start: int, end: int, names: Mapping[tuple[str, ...], set[int]]
) -> tuple[int, int, set[int]] | None:
    """Return the place and the objects of the longest name that begins in a head, or None. Of two
    names of the same length it is the last."""
    for length in range(len(words) - start, 0, -1):
        for first in reversed(range(start, min(end, len(words) - length + 1))):
            if things := names.get(tuple(words[first : first + length])):
                return first, first + length, things
    return None


def written(english: Sequence[str], others: Sequence[str], keywords: Sequence[str]) -> str:
    """Return the names of an object as a line."""
    return BETWEEN.join(AMONG.join(group) for group in (english, others, keywords))


def singular(word: str) -> str:
    """Return a word without the s or es of an English plural. Other words stay or change alike, so
    that only equality means something."""
    if len(word) < 4 or not word.isascii() or word.endswith("ss"):
        return word
    if re.search(r"(s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word.removesuffix("s")


def _noun(word: str) -> str:
    """Return the noun of an adjective on -y: snow of snowy, sun of sunny."""
    noun = word.removesuffix("y")
    return noun[:-1] if noun != word and len(noun) > 3 and noun[-1] == noun[-2] else noun


def _content(text: str) -> tuple[str, ...]:
    return tuple(singular(word) for word in split(text) if word not in ARTICLES)
