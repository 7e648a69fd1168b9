"""Find the concept that an emoji, or the name of an emoji, stands for.

The concept is the CLDR label in lower case, with spaces for hyphens and a singular last word. If a
set gives code points, they join it to the other sets. Otherwise the union of all known names does.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

CATEGORIES = {
    0: "smileys & emotion", 1: "people & body", 3: "animals & nature", 4: "food & drink",
    5: "travel & places", 6: "activities", 7: "objects", 8: "symbol", 9: "flags",
}
COUNTRY_FLAGS = (98, 99)
SKIN = {f"1f3f{c}" for c in "bcdef"}
# CLDR label -> a more common word for it.
RENAMED = {
    "automobile": "car", "oncoming automobile": "oncoming car", "lady beetle": "ladybug",
    "honeybee": "bee", "evergreen tree": "pine tree", "billed cap": "baseball cap",
    "boar": "wild boar", "cooking": "fried egg", "pot of food": "stew", "moai": "moai statue",
    "ewe": "sheep", "deciduous tree": "tree", "vertical traffic light": "traffic light",
    "locked": "padlock", "unlocked": "open padlock", "high voltage": "lightning bolt",
    "hourglass done": "hourglass", "light rail": "light rail train", "e mail": "e-mail",
    "people with bunny ears": "people with rabbit ears", "articulated lorry": "articulated truck",
}
CHILDREN, HEART, HANDSHAKE, RIGHT = {"1f466", "1f467"}, "2764", "1f91d", "27a1"
HOLDING_HANDS = "1f9d1-200d-1f91d-200d-1f9d1"
# Words that are always plural, or not plural at all. `singular` returns them unchanged.
KEEP_S = set(
    "abacus aerobics americas aquarius ares aries arts asterisk axis biceps binoculars "
    "boss briefs bus cactus campus census chess chopsticks christmas circus class claus "
    "clothes compass cross dress earphones eyes footprints gas glass glasses goggles "
    "grass hands headphones hibiscus hippopotamus hocus iris jeans kiss lens less loppers "
    "lotus lungs maracas mars mass mattress minus moss news nexus octopus ophiuchus pants "
    "physics pisces pliers plus pyjamas radius rhinoceros sagittarius santa scissors "
    "series shears shorts skis species stylus sunglasses swiss taurus tennis tetris tongs "
    "trousers tweezers us venus virus walrus".split()
)


@dataclass
class Concept:
    """One thing that drawings show, in any style."""

    concept: str
    category: str
    symbol: bool = False
    names: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    emoji: str = ""

    def add_name(self, name: str) -> None:
        if name and name not in self.names:
            self.names.append(name)


def singular(word: str) -> str:
    """Return the singular of an English plural, by its ending. Keep a word with another ending."""
    if word in KEEP_S or len(word) < 4 or word.endswith(("ss", "us", "is")) or word[-1] != "s":
        return word
    if word in ("leaves", "wolves", "knives", "halves", "loaves", "shelves"):
        return {"leaves": "leaf", "wolves": "wolf", "knives": "knife", "halves": "half",
                "loaves": "loaf", "shelves": "shelf"}[word]
    if word.endswith("ies") and word not in ("cookies", "movies", "selfies", "zombies", "pies"):
        return word[:-3] + "y"
    if word.endswith(("shes", "ches", "xes", "sses", "toes", "zzes")):
        return word[:-2]
    return word[:-1]


def clean(text: str) -> str:
    """Return the text in lower case, with straight apostrophes.

    Spaces replace hyphens, underscores, colons, commas and exclamation marks.
    """
    text = text.lower().replace("’", "'").replace("“", "").replace("”", "").replace("\u00a0", " ")
    text = re.sub(r"^(person|man|woman): ", r"\1 with ", text).replace("keycap: ", "keycap ")
    return re.sub(r"[\s_\-–:,!]+", " ", text).strip()


def concept_key(text: str, person: bool = False) -> str:
    """Return the key that joins drawings: the cleaned text, with a singular last word.

    The last word stays as it is if `person` is true, or if `with`, `of` or `and` stands before it.
    """
    words = clean(text).split()
    if words and not person and not {"with", "of", "and"} & set(words[:-1]):
        words[-1] = singular(words[-1])
    return RENAMED.get(" ".join(words), " ".join(words))


def normal_hex(code: str) -> str:
    return "-".join(p for p in code.lower().split("-") if p != "fe0f")


def neutral(code: str) -> tuple[str | None, str]:
    """Return (code points of the neutral emoji, reason), or (None, reason).

    `code` either is the neutral emoji (`itself`) or stands in for it (`stand-in`). If it does
    neither, the first value is None.
    """
    parts = normal_hex(code).split("-")
    if SKIN & set(parts):
        return None, "skin tone"
    if RIGHT in parts:
        return None, "gender/direction variant"
    if parts[-1] in ("2640", "2642") and "200d" in parts:
        return "-".join(parts[:-2]), "stand-in"
    if parts[0] in ("1f46b", "1f46c", "1f46d"):
        return HOLDING_HANDS, "stand-in"
    if len(parts) > 1 and parts[0] in ("1f468", "1f469"):
        if CHILDREN & set(parts) or HEART in parts or HANDSHAKE in parts:
            return None, "family/couple variant"
        return "-".join(["1f9d1", *parts[1:]]), "stand-in"
    if len(parts) > 1 and parts[0] == "1f9d1" and ("1f9d2" in parts or HEART in parts):
        return None, "family/couple variant"
    return "-".join(parts), "itself"


class EmojiTable:
    """All emoji with their concepts, and a dictionary from names to emoji."""

    def __init__(self, emojibase: Path, iconify: Path):
        """Read the emoji and their names.

        `emojibase` is the folder `emojibase-data/en`. `iconify` is the folder of the sets' JSON.
        """
        self.concepts: dict[str, Concept] = {}  # by concept key
        self.by_code: dict[str, Concept] = {}
        self.by_name: dict[str, str] = {}  # slug without spaces -> code point
        data = json.loads((emojibase / "data.json").read_text(encoding="utf-8"))
        codes = json.loads((emojibase / "shortcodes/github.json").read_text(encoding="utf-8"))
        for entry in data:
            if entry.get("group") in CATEGORIES and entry["subgroup"] not in COUNTRY_FLAGS:
                self._add(entry, codes)
        for entry in data:
            if entry.get("group") in CATEGORIES and entry["subgroup"] not in COUNTRY_FLAGS:
                self.by_name.setdefault(slug(entry["label"]), normal_hex(entry["hexcode"]))
        self._add_aliases(iconify)
        self._add_shortcodes(codes)

    def _add(self, entry: dict, codes: dict) -> None:
        code = normal_hex(entry["hexcode"])
        if neutral(code)[0] != code:
            return
        person = entry["group"] in (0, 1)
        key = concept_key(entry["label"], person)
        concept = self.concepts.get(key)
        if concept is None:
            category = CATEGORIES[entry["group"]]
            concept = Concept(key, category, symbol=category == "symbol", emoji=code)
            self.concepts[key] = concept
        concept.add_name(key)
        concept.add_name(clean(entry["label"]))
        for tag in entry.get("tags", ()):
            if clean(tag) not in concept.keywords:
                concept.keywords.append(clean(tag))
        self.by_code[code] = concept

    def _add_aliases(self, iconify: Path) -> None:
        """Add the names and aliases of the sets that give code points.

        They serve the sets that give none.
        """
        for name in ("fluent-emoji-flat", "noto", "twemoji", "openmoji"):
            data = json.loads((iconify / f"{name}.json").read_text(encoding="utf-8"))
            codes = {icon: normal_hex(code) for code, icon in data["chars"].items()}
            for alias, parent in data.get("aliases", {}).items():
                if parent["parent"] in codes and set(parent) == {"parent"}:
                    codes.setdefault(alias, codes[parent["parent"]])
            for icon, code in codes.items():
                self.by_name.setdefault(slug(icon), code)
                concept = self.by_code.get(code)
                if concept is not None and name != "openmoji":
                    concept.add_name(clean(icon))

    def _add_shortcodes(self, codes: dict) -> None:
        for code, names in codes.items():
            concept = self.by_code.get(normal_hex(code))
            for name in [names] if isinstance(names, str) else names:
                if concept is None or not re.fullmatch(r"[a-z][a-z_]{2,}", name):
                    continue
                self.by_name.setdefault(slug(name), normal_hex(code))
                if "_" in name or name in concept.keywords:
                    concept.add_name(concept_key(name, concept.category in PEOPLE))

    def find(self, name: str) -> Concept | None:
        """Return the concept of a name, or None.

        The name may have any case. Its words may be joined by hyphens, spaces or nothing.
        """
        code = self.by_name.get(slug(name))
        return self.by_code.get(neutral(code)[0]) if code and neutral(code)[0] else None


PEOPLE = ("smileys & emotion", "people & body")


def slug(name: str) -> str:
    """Return only the letters and digits of a name.

    So `icecream`, `ice-cream` and `ice cream` have the same slug.
    """
    return re.sub(r"[^a-z0-9]", "", clean(name))
