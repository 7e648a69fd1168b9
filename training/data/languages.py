"""Names in other languages, from the emoji annotations of the Unicode CLDR, and colour words.

    names_of(root) -> {emoji's code points: {language: [names]}}

A phrase in another language always has an English twin. MiniLM, an English model, embeds the twin.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from training.data.colours import TERMS

TABLE = Path(__file__).with_name("languages.txt")
# The words, by language, which say that only the head is shown. "fox face" names a fox.
FACE = re.compile(
    r"\b(cara|rosto|cabeza) de |\bt[êe]te d[e'’] ?|\b(muso|faccia|testa) d[ie] |[- ]?gesicht\b"
    r"|[- ]?kopf\b|\b(морда|мордочка|голова) |\b(głowa|pysk|pyszczek) |[- ]?(hoofd|kop)\b"
    r"| (yüzü|suratı)\b|の顔|[头脸头]$| 얼굴| (जैसा|का|के) (चेहरा|मुख)|\bوجه "
)
ORDER = "red orange yellow green blue purple pink brown grey black white".split()


@dataclass(frozen=True)
class Language:
    """The way in which a language combines a colour with a noun.

    `orders` holds the word orders, as in languages.txt. `colours` holds the forms of each colour.
    """

    orders: tuple[str, ...]
    colours: dict[str, tuple[str, ...]]

    def phrase(self, noun: str, colour: str | None, rng: np.random.Generator) -> str:
        """Return the noun, with a colour if `colour` is given. `colour` is an English term."""
        if colour is None:
            return noun
        order = self.orders[int(rng.integers(len(self.orders)))]
        forms = self.colours[colour]
        said = forms[int(rng.integers(len(forms)))]
        words = []
        for word in order.split():
            choice = word.split("/")
            word = choice[int(rng.integers(len(choice)))]
            words.append({"n": noun, "c": said}.get(word, word.replace("cn", said + noun)))
        return " ".join(words)


@cache
def languages() -> dict[str, Language]:
    """Return the languages of languages.txt by language code."""
    lines = [x for x in TABLE.read_text("utf-8").splitlines() if x and x[0] != "#"]
    found = {}
    for head, words in zip(lines[::2], lines[1::2], strict=True):
        code, _, orders = head.removeprefix("[").partition("] ")
        forms = [tuple(word.split("/")) for word in words.split()]
        colours = dict(zip(ORDER, forms, strict=True))
        assert colours.keys() == set(TERMS), code
        found[code] = Language(tuple(orders.split("; ")), colours)
    return found


def names_of(root: Path) -> dict[str, dict[str, list[str]]]:
    """Return {emoji's code points: {language: [names]}}.

    The code points are lower-case hex, as in the manifest. The names are the spoken name without
    the word for a face, and the spoken name with it. `root` is the package's folder `annotations`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for code in languages():
        data = json.loads((root / code / "annotations.json").read_text("utf-8"))
        for emoji, entry in data["annotations"]["annotations"].items():
            key = "-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F)
            for name in entry.get("tts", [])[:1]:
                name = name.lower().partition(",")[0]
                names = [FACE.sub("", name).strip() or name, name]
                if code in ("ja", "zh"):  # for example 車 from 自動車, 狐 from 狐狸
                    names += [w for w in entry.get("default", []) if w in name]
                found.setdefault(key, {})[code] = list(dict.fromkeys(names))
    return found
