"""Captions from a grammar: names, articles, plurals, colours, sizes, places, backgrounds.

Each visit to a drawing makes a new caption. All randomness comes from the generator that the caller
passes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.data.colours import TERMS
from training.data.emoji import KEEP_S, PEOPLE, clean, singular

COLOUR_WORDS = frozenset(TERMS) | {"gray"}
NUMBERS = {2: ("two", "a pair of", "2"), 3: ("three", "3"), 4: ("four", "4")}
MEDIA = ("a drawing of", "a picture of", "an icon of", "an illustration of", "clip art of",
         "an image of", "a cartoon of")
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
BESIDE = ("beside", "next to", "and")
IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen", "leaf": "leaves",
    "wolf": "wolves", "knife": "knives", "loaf": "loaves", "half": "halves", "shelf": "shelves",
    "scarf": "scarves", "elf": "elves", "thief": "thieves", "calf": "calves", "die": "dice",
    "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "hero": "heroes",
    "volcano": "volcanoes", "mosquito": "mosquitoes", "cactus": "cacti", "sheep": "sheep",
    "fish": "fish", "deer": "deer", "bison": "bison", "moose": "moose", "squid": "squid",
    "policeman": "policemen", "firefighter": "firefighters", "aircraft": "aircraft",
}
MASS = set(
    "bread rice money fire ice sushi spaghetti pasta bacon butter corn water cheese milk honey "
    "tennis baseball basketball football soccer hockey badminton volleyball cricket golf bowling "
    "ping pong fog rain snow wind smoke hail sleet drizzle popcorn garlic ginger salt sake beer "
    "wine coffee tea knitting judo karate boxing fencing wrestling polo skiing surfing wool dna "
    "gardening aerobics breakdance toast luggage clothing jewellery furniture grass pudding".split()
)
MANY = set(
    "scissors glasses sunglasses goggles jeans shorts trousers binoculars skis headphones "
    "chopsticks pliers arts shears people eyes dice socks biceps hands hearts clothes lungs "
    "footprints briefs maracas".split()
)
THINGS_IN_ING = set("ring king wing building string spring swing sling earring painting".split())
PRONOUNCED_AN = ("hour", "honest", "heir", "x-ray", "11", "18", "8", "mri", "sos", "led ", "lcd")
PRONOUNCED_A = ("uni", "use", "usb", "utensil", "euro", "ewe", "one", "ufo", "ukulele", "eucal")


@dataclass(frozen=True)
class Noun:
    """One name of a concept, ready for a phrase.

    `number` is `one`, `many` (the name is already plural) or `mass`.
    """

    text: str
    number: str

    @property
    def countable(self) -> bool:
        """Return whether the regular plural of the name reads well."""
        return self.number == "one" and not re.search(
            r"ing\b|\bno\b|\d|\b(on|in|at|from|by|behind|over|showing)\b|'s$", self.text
        ) and len(self.text.split()) <= 3


def article(phrase: str) -> str:
    """Return the phrase with `a` or `an` before it. The first sound of the phrase decides which."""
    if phrase.startswith(PRONOUNCED_AN):
        return f"an {phrase}"
    if phrase[:1] in "aeiou" and not phrase.startswith(PRONOUNCED_A):
        return f"an {phrase}"
    return f"a {phrase}"


def plural(name: str) -> str:
    """Return the plural of a noun phrase.

    The head takes the plural. It is the word before `of`, `with`, `without` or `and`, or else the
    last word.
    """
    words = name.split()
    heads = [i for i, word in enumerate(words) if word in ("of", "with", "without", "and") and i]
    head = (heads[0] if heads else len(words)) - 1
    words[head] = plural_word(words[head])
    return " ".join(words)


def plural_word(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in KEEP_S and word[-1] == "s" and word.endswith(("es", "ts", "rs", "ks", "ns")):
        return word  # for example scissors, glasses, jeans
    if word.endswith("man") and word not in ("human", "german", "talisman"):
        return word[:-3] + "men"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def number_of(name: str) -> str:
    """Return `one`, `many` or `mass`. The head word of the name decides."""
    words = re.split(r" (?:of|with|without|and|in|on) ", name)[0].split()
    head = words[-1] if words else name
    activity = name.endswith("ing") and " " not in name and name not in THINGS_IN_ING
    if head in MASS or activity:
        return "mass"
    if head in MANY or " and " in name or (head.endswith("s") and singular(head) != head):
        return "many"
    return "one"


def usable_names(names: list[str], banned: re.Pattern | None) -> list[str]:
    """Return the cleaned names, without duplicates and in the same order.

    Leave out names with banned words, with symbols, or with more than 40 characters or 6 words. The
    concept's own name stays first.
    """
    kept = []
    for name in names:
        name = clean(name)
        fine = re.fullmatch(r"[a-z0-9'&. ]{2,40}", name) and len(name.split()) <= 6
        fine = fine and not re.search(r"\b(wo)?mans\b", name)
        if fine and not (banned and banned.search(name)) and name not in kept:
            kept.append(name)
    return kept


def colour_words(text: str) -> set[str]:
    """Return the basic colour terms among the words of a text. `gray` counts as `grey`."""
    found = set(re.findall(r"[a-z]+", text.lower())) & COLOUR_WORDS
    return {"grey" if word == "gray" else word for word in found}


def banned_words(words: Iterable[str]) -> re.Pattern | None:
    """Return a pattern that finds any of the words as a whole word, singular or plural.

    Return None if there are no words.
    """
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(longest_first)})(?:s|es)?\b") if longest_first else None


class Grammar:
    """Phrases about one or more nouns. All randomness comes from `rng`, a numpy Generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def noun_phrase(self, noun: Noun, colour: str | None = None, size: str | None = None) -> str:
        """Return a phrase such as `a big red fox`. Plural and mass nouns get no article."""
        adjectives = [self.pick(SIZES[size])] if size else []
        adjectives += [colour] if colour else []
        phrase = " ".join([*adjectives, noun.text])
        return article(phrase) if noun.number == "one" else phrase

    def one(self, noun: Noun, colour: str | None, size: str | None, ground: str | None,
            side: str | None, keywords: list[str]) -> str:
        """Return a caption of a single drawing. Only `noun` is required.

        `colour`, `size`, `ground` and `side` may be None, and `keywords` may be empty.
        """
        phrase = self.noun_phrase(noun, colour, size)
        roll = self.rng.random()
        if roll < 0.2 and not size:
            plain = f"{colour} {noun.text}" if colour else noun.text
            phrase = f"{noun.text}, {colour}" if colour and self.chance(0.4) else plain
        elif roll < 0.4 and not noun.text.endswith("icon"):
            phrase = f"{self.pick(MEDIA)} {phrase}"
        elif colour and roll < 0.5 and noun.number == "one" and not size:
            phrase = f"{article(noun.text)} that is {colour}"
        if side:
            phrase = f"{phrase} on the {side}"
        if ground:
            phrase = self.on_ground(phrase, ground)
        if keywords and self.chance(0.5):
            phrase = f"{phrase}, {', '.join(keywords)}"
        return phrase

    def on_ground(self, phrase: str, ground: str) -> str:
        """Return the phrase with its background, for example `… on a blue background`.

        The method picks one of 4 wordings.
        """
        return self.pick((
            f"{phrase} on {article(ground)} background", f"{phrase}, {ground} background",
            f"{phrase} in front of {article(ground)} background", f"{phrase} on {ground}",
        ))

    def pair(self, left: tuple[Noun, str | None], right: tuple[Noun, str | None],
             ground: str | None, sides: bool) -> str:
        """Return a caption of two drawings. `sides` allows the words `left` and `right`."""
        a, b = self.noun_phrase(*left), self.noun_phrase(*right)
        if sides and self.chance(0.5):
            phrase = self.pick((
                f"{a} on the left and {b} on the right", f"{a} to the left of {b}",
                f"{b} to the right of {a}", f"{a} left of {b}", f"{b} right of {a}",
                f"{a} on the left, {b} on the right",
            ))
        else:
            first, second = (a, b) if self.chance(0.5) else (b, a)
            phrase = f"{first} {self.pick(BESIDE)} {second}"
        return self.on_ground(phrase, ground) if ground else phrase

    def several(self, noun: Noun, count: int, colour: str | None, ground: str | None) -> str:
        """Return a caption such as `two green apples on a blue background`."""
        many = plural(noun.text) if noun.number == "one" else noun.text
        phrase = f"{self.pick(NUMBERS[count])} {colour + ' ' if colour else ''}{many}"
        if self.chance(0.2):
            phrase = f"{self.pick(MEDIA)} {phrase}"
        return self.on_ground(phrase, ground) if ground else phrase


def nouns_of(names: list[str], category: str) -> list[Noun]:
    """Return the names as nouns.

    In the categories of faces and people, a noun is `many` only if its name begins with `people `
    or ends with a word of MANY, such as hands or eyes. All others are `one`.
    """
    if category not in PEOPLE:
        return [Noun(name, "mass" if name.endswith(("o'clock", "thirty")) else number_of(name))
                for name in names]
    return [Noun(name, "many" if name.startswith("people ") or name.split()[-1] in MANY else "one")
            for name in names]
