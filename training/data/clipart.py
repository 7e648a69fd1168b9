"""Names of clip art: Open Clip Art, Tango, and the Kenney sprites in `arcade`.

Open Clip Art files often carry the title of another file, and many titles are Italian or French. A
title counts only if it has at most 4 words and shares a word stem with the file name. Otherwise the
file name counts, without the words of its author.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.emoji import clean
from training.data.sources import Sources

WORDS = Path(__file__).with_name("words.txt")
SKIPPED = (
    "shapes", "special", "buttons", "logos", "computer/icons", "computer/buttons",
    "computer/diagrams", "signs_and_symbols/flags", "signs_and_symbols/led",
    "signs_and_symbols/map_symbols", "signs_and_symbols/hazard", "transportation/aiga-symbols",
    "transportation/roadsigns", "recreation/games/cards", "people/stickmen",
    "unsorted/duplicates", "signs_and_symbols/disability",
)
FOLDERS = {
    "animals": "animals & nature", "plants": "animals & nature", "food": "food & drink",
    "people": "people & body", "people/clothing": "objects", "people/smilies": "smileys & emotion",
    "transportation": "travel & places", "buildings": "travel & places",
    "geography": "travel & places", "recreation": "activities", "signs_and_symbols": "symbol",
    "signs_and_symbols/clocks": "objects", "signs_and_symbols/weather": "travel & places",
    "signs_and_symbols/money": "objects",
}
NOISE = set(
    "01 02 03 04 05 06 07 08 09 alt svg clipart clip art by icon icons image picture drawing "
    "simple stylized cartoon colou coloured colored new v r b c pd architetto francesco "
    "rollandin ganson md the a an no of part cc example menu vector part wp inkscape version "
    "simpl styl generic basic nice my anonymous".split()
)


@dataclass(frozen=True)
class Art:
    """One clip-art file, with the name of the thing that it shows."""

    path: Path
    file: str
    name: str
    category: str
    symbol: bool
    keywords: tuple[str, ...] = ()


class Words:
    """The content of words.txt: translations, and names given by hand to files.

    The name `-` means that the file is left out.
    """

    def __init__(self):
        self.words: dict[str, str] = {}
        self.files: dict[str, dict[str, str]] = {}
        target = None
        for line in WORDS.read_text(encoding="utf-8").splitlines():
            head = re.match(r"\[(.+)\]", line)
            if head:
                target = (self.words if head.group(1) == "translations"
                          else self.files.setdefault(head.group(1), {}))
            elif line and not line.startswith("#"):
                for entry in line.split(";"):
                    key, _, name = entry.strip().partition("=")
                    if key:
                        target[key.strip()] = name.strip() or key.strip().replace("-", " ")


def clip_art(name: str, sources: Sources, dropped: Counter) -> Iterator[Art]:
    """Yield all named drawings of a clip-art set.

    For `openclipart`, count the drawings that are left out in `dropped`, by reason.
    """
    words = Words()
    if name == "openclipart":
        yield from open_clip_art(sources.openclipart, words, dropped)
        return
    folder, pattern = {
        "tango": (sources.tango, "**/*.svg"), "arcade-kenney": (sources.arcade, "**/*.png"),
    }[name]
    known = words.files[name]
    for path in sorted(folder.glob(pattern)):
        if known.get(path.stem, "-") != "-" and not path.is_symlink():
            yield Art(path, str(path.relative_to(folder)), known[path.stem], "objects", False)


def open_clip_art(folder: Path, words: Words, dropped: Counter) -> Iterator[Art]:
    by_hand = words.files.get("openclipart", {})
    for path in sorted(folder.rglob("*.svg")):
        inside = str(path.relative_to(folder))
        if inside.startswith(SKIPPED):
            dropped["skipped folder (flags, shapes, UI icons, cards, patterns, road signs)"] += 1
            continue
        if re.search(r"(^|[_-])(bw|b_and_w|outline|lineart|silhouette)", path.stem.lower()):
            dropped["black-and-white by name"] += 1
            continue
        text = path.read_bytes()[:200_000].decode("utf-8", errors="replace")
        if re.search(r"\bGPL\b|GNU General", text):
            dropped["metadata says GPL"] += 1
            continue
        name = by_hand.get(path.stem) or art_name(path.stem, text, words.words)
        if name in (None, "-"):
            dropped["no usable short name"] += 1
            continue
        parts = inside.split("/")
        category = FOLDERS.get("/".join(parts[:2]), FOLDERS.get(parts[0], "objects"))
        keywords = tuple(k for k in subjects(text) if k not in ("hash", "unsorted", "icon"))
        yield Art(path, inside, name, category, category == "symbol", keywords)


def subjects(text: str) -> list[str]:
    """Return at most 6 keywords of an SVG's metadata, in lower case."""
    found = re.findall(r"<rdf:li[^>]*>\s*([^<]{3,20}?)\s*<", text)
    return [k.lower() for k in found if re.fullmatch(r"[A-Za-z]+( [A-Za-z]+)?", k)][:6]


def art_name(stem: str, text: str, translations: dict[str, str]) -> str | None:
    """Return a short name of 1 to 3 words, or None. A name from `translations` may be longer."""
    titles = re.findall(r"<dc:title[^>]*>\s*([^<]*?)\s*<", text)
    authors = set(words_of(" ".join(titles[1:])))
    own = [w for w in words_of(stem) if not is_authors(w, authors)]
    title = words_of(titles[0]) if titles else []
    shares = any(a[:4] == b[:4] for a in title for b in own if min(len(a), len(b)) > 2)
    chosen = title if shares and len(title) <= 4 else own
    for phrase in (" ".join(title), " ".join(own)):
        if phrase in translations:
            return translations[phrase]
    chosen = [w for w in chosen if w not in NOISE and not is_authors(w, authors)]
    whole = " ".join(chosen)
    if whole in translations:
        return translations[whole]
    # Translate single words only to single words. `book` alone means a closed book, but the `book`
    # of `open book` does not.
    if len(chosen) > 1:
        chosen = [t if " " not in (t := translations.get(w, w)) and t != "-" else w for w in chosen]
    if not 1 <= len(chosen) <= 3 or any(len(w) < 2 for w in chosen):
        return None
    return " ".join(chosen) if sum(map(len, chosen)) > 2 else None


def words_of(text: str) -> list[str]:
    """Return the words in lower case. Split camel case.

    Drop digits, single letters, and brackets with their content.
    """
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text)
    text = re.sub(r"\(.*?\)|\[.*?\]|\d+", " ", text)
    return [w for w in re.findall(r"[a-zà-ÿ']+", clean(text)) if len(w) > 1]


def is_authors(word: str, authors: set[str]) -> bool:
    """Return whether a word of a file name is one of the author's words.

    A file name may cut the last of them short.
    """
    return any(a == word or (len(word) > 2 and a.startswith(word)) for a in authors)
