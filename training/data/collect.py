"""All drawings with a usable name, from all sets, each with its concept.

This module renders nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.clipart import clip_art
from training.data.emoji import (
    PEOPLE,
    Concept,
    EmojiTable,
    clean,
    concept_key,
    neutral,
    normal_hex,
    slug,
)
from training.data.sources import SETS, PictureSet, Sources

THINGS = Path(__file__).with_name("things.txt")


@dataclass
class Drawing:
    """A drawing before `render` renders it. `source` is SVG text or the path of a file."""

    set: PictureSet
    concept: Concept
    source: str
    is_path: bool
    file: str
    variant: bool = False  # whether the drawing stands in for the neutral emoji

    @property
    def grey_rule(self) -> str:
        """Return the `grey_rule` argument of `render`: what it does with a grey drawing."""
        if not self.concept.emoji or self.concept.symbol:
            return "drop"
        return "keep" if self.set.kind == "emoji" else "shaded"


class Collector:
    """Collects the drawings of all sets. Counts the drawings that it leaves out in `dropped`.

    The keys of `dropped` are the reasons.
    """

    def __init__(self, sources: Sources):
        self.sources = sources
        self.table = EmojiTable(sources.emojibase, sources.iconify)
        self.concepts = self.table.concepts  # clip art and icons add to it
        self.dropped: Counter[str] = Counter()
        self.things = read_things()

    def all(self) -> list[Drawing]:
        """Return all drawings, set by set. In a set, neutral drawings come before stand-ins."""
        drawings: list[Drawing] = []
        for chosen in SETS.values():
            if chosen.name == "fluent-emoji-3d":
                found = list(self.fluent_3d(chosen))
            elif chosen.kind == "emoji":
                found = list(self.emoji_set(chosen))
            elif chosen.kind == "icons":
                found = list(self.icon_set(chosen))
            else:
                found = list(self.clip_art(chosen))
            drawings += self.first_of_each(sorted(found, key=lambda d: (d.variant, d.file)))
        return drawings

    def first_of_each(self, found: list[Drawing]) -> Iterator[Drawing]:
        """Yield the drawings. In an emoji set, leave out all but the first drawing of a concept.

        `streamline-emojis` has numbered drawings of one thing. Keep all of them, except those in
        the categories of PEOPLE.
        """
        seen = set()
        for drawing in found:
            numbered = (drawing.set.name == "streamline-emojis"
                        and drawing.concept.category not in PEOPLE)
            if drawing.set.kind == "emoji" and drawing.concept.concept in seen and not numbered:
                self.dropped["second drawing of one emoji"] += 1
                continue
            seen.add(drawing.concept.concept)
            yield drawing

    def by_code(self, code: str) -> tuple[Concept | None, bool]:
        """Return (concept or None, whether the drawing only stands in for the neutral emoji).

        If there is no concept, count the reason in `dropped`.
        """
        base, why = neutral(code)
        concept = self.table.by_code.get(base) if base else None
        if concept is None:
            self.dropped["no emoji match (flags, extras)" if base else why] += 1
        return concept, why == "stand-in"

    def fluent_3d(self, chosen: PictureSet) -> Iterator[Drawing]:
        for path in sorted(self.sources.fluent_3d.glob("*.webp")):
            concept, variant = self.by_code(normal_hex(path.stem))
            if concept:
                yield Drawing(chosen, concept, str(path), True, path.name, variant)

    def emoji_set(self, chosen: PictureSet) -> Iterator[Drawing]:
        data = json.loads((self.sources.iconify / f"{chosen.name}.json").read_text("utf-8"))
        codes: dict[str, str] = {}
        for code, icon in data.get("chars", {}).items():
            codes.setdefault(icon, normal_hex(code))
        hand = self.things.get(chosen.name, Things()).names
        for icon in data["icons"]:
            if re.search(r"(dark|light|medium)(-skin-tone)?$", icon) and icon not in codes:
                self.dropped["skin tone"] += 1
                continue
            code = codes.get(icon) or self.table.by_name.get(slug(icon))
            numbered = re.fullmatch(r"(.+)-(\d)", icon)
            if icon in hand:
                code = self.table.by_name.get(slug(hand[icon]), code)
            elif code is None and numbered:
                code = self.table.by_name.get(slug(numbered.group(1)))
            if chosen.name == "streamline-emojis" and icon in data["categories"]["Flags"]:
                code = None
            if code is None:
                concept, variant = self.own_concept(chosen, icon, hand), False
            else:
                concept, variant = self.by_code(code)
            if concept:
                yield Drawing(chosen, concept, svg_of(data, icon), False, icon, variant)

    def own_concept(self, chosen: PictureSet, icon: str, hand: dict[str, str]) -> Concept | None:
        """Return the concept of a drawing that is no emoji but has a name in `hand`.

        `hand` holds the names given by hand in things.txt. If the drawing has none, return None.
        """
        if icon in hand:
            return self.concept_of(hand[icon], "objects")
        self.dropped["no emoji match (flags, extras)"] += 1
        return None

    def concept_of(self, name: str, category: str, symbol: bool = False) -> Concept:
        """Return the concept of a name: an emoji's concept, a known concept or a new one."""
        found = self.table.find(name)
        if found is not None:
            return found
        key = concept_key(name)
        if key not in self.concepts:
            self.concepts[key] = Concept(key, category, symbol, [key])
        return self.concepts[key]

    def icon_set(self, chosen: PictureSet) -> Iterator[Drawing]:
        data = json.loads((self.sources.iconify / f"{chosen.name}.json").read_text("utf-8"))
        things = self.things[chosen.name]
        for icon, name in largest_sizes(data["icons"], chosen.name).items():
            if name.endswith("-duo"):
                self.dropped["two-tone duplicate (-duo)"] += 1
                continue
            if things.suffix:
                if not name.endswith(things.suffix):
                    self.dropped["outline / meter / combination"] += 1
                    continue
                name = name.removesuffix(things.suffix)
            if name in things.left_out or "logo" in name:
                self.dropped["brand / trade mark / no name"] += 1
            elif name in things.names:
                concept = self.concept_of(things.names[name], "objects")
                yield Drawing(chosen, concept, svg_of(data, icon), False, icon)
            elif things.rest:
                plain = re.sub(r"-\d+$", "", name)
                concept = self.concept_of(f"{plain} icon", "symbol", symbol=True)
                concept.add_name(concept_key(plain))
                yield Drawing(chosen, concept, svg_of(data, icon), False, icon)
            else:
                self.dropped["UI glyph (no thing)"] += 1

    def clip_art(self, chosen: PictureSet) -> Iterator[Drawing]:
        for art in clip_art(chosen.name, self.sources, self.dropped):
            concept = self.concept_of(art.name, art.category, art.symbol)
            for keyword in art.keywords:
                if clean(keyword) not in concept.keywords:
                    concept.keywords.append(clean(keyword))
            yield Drawing(chosen, concept, str(art.path), True, art.file)


class Things:
    """One section of things.txt. `options` is the text after the name of the section."""

    def __init__(self, options: str = ""):
        self.names: dict[str, str] = {}
        self.left_out: set[str] = set()
        self.rest = "rest=symbol" in options
        found = re.search(r"suffix=(\S+)", options)
        self.suffix = found.group(1) if found else ""


def read_things() -> dict[str, Things]:
    """Return the sections of things.txt by set."""
    sections: dict[str, Things] = {}
    for line in THINGS.read_text(encoding="utf-8").splitlines():
        head = re.match(r"\[(.+?)\](.*)", line)
        if head:
            section = sections.setdefault(head.group(1), Things(head.group(2)))
        elif line and not line.startswith("#"):
            for word in line.split():
                if word.startswith("!"):
                    section.left_out.add(word[1:])
                else:
                    icon, _, name = word.partition("=")
                    section.names[icon] = name or icon
    return sections


def largest_sizes(icons: dict, name: str) -> dict[str, str]:
    """Return {icon: name without its size}, with only the largest size of each icon.

    Only `fluent-color` has several sizes. In other sets the name is the icon itself.
    """
    if name != "fluent-color":
        return {icon: icon for icon in icons}
    best: dict[str, int] = {}
    for icon in icons:
        stem, _, size = icon.rpartition("-")
        best[stem] = max(best.get(stem, 0), int(size))
    return {f"{stem}-{size}": stem for stem, size in best.items()}


def svg_of(data: dict, icon: str) -> str:
    """Return an icon of an iconify set as a complete SVG document."""
    entry = data["icons"][icon]
    left, top = entry.get("left", 0), entry.get("top", 0)
    width = entry.get("width", data.get("width", 16))
    height = entry.get("height", data.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f'{entry["body"]}</svg>'
    )
