"""Prompts: "a red fox | oil painting:0.5 | blur:-1".

`|` separates parts. `:number` at the end of a part is its weight (default 1; negative repels). It
is a weight if a letter, an emoji, a closing bracket or a quote precedes it, and the number is from
-10 to 10. In "a clock at 12:30" it is text. A backslash makes the next `|`, `:` or backslash an
ordinary character. An emoji is read as its Unicode name, so that encoders that never saw the
character understand it. Images can be parts too, alone or with text: `compose("oil painting:0.5",
ImagePart(image))`.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .errors import UsageError

if TYPE_CHECKING:
    import torch
    from PIL import Image

_PIECE = re.compile(r"\\[\\|:]|[^\\]|\\", re.DOTALL)
_WEIGHT = re.compile(
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?))\s*", re.IGNORECASE
)
MOST = 10.0  # a larger number after a colon is probably text
_CLOSING = ")]}»\"'”’`>"
_PICTOGRAPHS = ((0x2300, 0x27BF), (0x2B00, 0x2BFF), (0x1F000, 0x1FAFF))
_JOINERS = "\u200d\ufe0e\ufe0f"


@dataclass(frozen=True)
class Part:
    """A text and its weight, which is finite."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class ImagePart:
    """An image and its weight, which is finite. The image is a PIL image, or image_3HW in [0, 1].
    """

    image: Image.Image | torch.Tensor
    weight: float = 1.0
    text: ClassVar[str] = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt, as a tuple of one or more parts.

    Args:
        parts: the parts: texts (`Part`) and images (`ImagePart`), each with its weight.

    Raises:
        UsageError: all weights are 0, or the weights cancel each other out, as in
            "a fox | a fox:-1".
    """

    parts: tuple[Part | ImagePart, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if not math.isfinite(part.weight):
                name = repr(shorten(part.text)) if part.text else "an image"
                raise UsageError(f"The weight of {name} must be a finite number.")
        if not any(part.weight for part in self.parts):
            raise UsageError("A prompt needs a part whose weight is not 0.")
        if not any(self._sums().values()):
            raise UsageError(
                "The weights of the prompt cancel each other out: every part attracts as much as "
                "it repels."
            )

    def __str__(self) -> str:
        weights = ("" if p.weight == 1 else f":{p.weight:g}" for p in self.parts)
        names = (part.text or "an image" for part in self.parts)
        return repr(" | ".join(name + weight for name, weight in zip(names, weights)))

    def _sums(self) -> dict[object, float]:
        """Return the total weight of each text and image."""
        sums: dict[object, float] = {}
        for part in self.parts:
            key = part.text or id(part.image)
            sums[key] = sums.get(key, 0.0) + part.weight
        return sums

    @property
    def text(self) -> str:
        """Return what conditions a generator: the texts of positive weight, joined by commas."""
        return ", ".join(part.text for part in self.parts if part.weight > 0 and part.text)


def compose(*parts: str | Part | Prompt | ImagePart | Image.Image | torch.Tensor) -> Prompt:
    """Make one Prompt of several parts.

    Args:
        *parts: texts, which are parsed; parts; prompts; and images, which get a weight of 1.
    """
    together: list[Part | ImagePart] = []
    for part in parts:
        if isinstance(part, (Part, ImagePart)):
            together.append(part)
        elif isinstance(part, (str, Prompt)):
            together.extend((parse(part) if isinstance(part, str) else part).parts)
        else:
            together.append(ImagePart(part))
    return Prompt(tuple(together))


def parse(prompt: str) -> Prompt:
    """Return the Prompt that a text spells.

    Raises:
        UsageError: the text is empty, or a weight is not a finite number.
    """
    check_text(prompt)
    pieces = _PIECE.findall(prompt)
    parts = [_part(group, prompt) for group in _split(pieces, "|")]
    if not any(part.weight for part in parts):
        raise UsageError(f"Every part of the prompt {shorten(prompt)!r} has weight 0.")
    return Prompt(tuple(parts))


def check_text(text: str) -> None:
    """Raise UsageError for bytes that are not UTF-8. A command line can contain them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} is not valid text: give it in UTF-8.") from None


def one_word(text: str) -> str:
    """Return the text without blanks around it. Raise UsageError if it is not one word."""
    check_text(text)
    word = text.strip()
    if len(word.split()) != 1:
        what = f"{shorten(word)!r} are several words" if word else "The word is empty"
        raise UsageError(f"{what}: choose a word without a meaning, such as blorvek.")
    return word


def read_lines(path: str | os.PathLike, *, what: str, comments: bool = False) -> list[str]:
    """Return the non-blank lines of a UTF-8 file. With `comments`, skip lines that begin with #.

    Raises:
        UsageError: the file does not exist, is not UTF-8, or has no such lines. `what` names the
            expected content, in the plural.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path} is not UTF-8 text (line {line}), perhaps latin-1: save it as UTF-8 "
            "(iconv -f latin1 -t utf-8)."
        ) from None
    except FileNotFoundError:
        raise UsageError(f"There is no file of {what} {path}.") from None
    except OSError as error:
        raise UsageError(f"The file of {what} {path} cannot be read: {error.strerror}.") from None
    lines = (line.strip() for line in text.splitlines())
    found = [line for line in lines if line and not (comments and line.startswith("#"))]
    if not found:
        raise UsageError(f"There are no {what} in {path}.")
    return found


def shorten(text: str, limit: int = 60) -> str:
    """Return a text, cut to `limit` characters, for messages and labels."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _split(pieces: list[str], separator: str) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for piece in pieces:
        if piece == separator:
            groups.append([])
        else:
            groups[-1].append(piece)
    return groups


def _part(pieces: list[str], prompt: str) -> Part:
    *head, tail = _split(pieces, ":")
    weight = _WEIGHT.fullmatch("".join(tail)) if head else None
    if weight and not _ends_words(pieces[: len(pieces) - len(tail) - 1]):
        weight = None
    if weight:
        pieces = pieces[: len(pieces) - len(tail) - 1]
    text = _plain(pieces)
    if not text:
        raise UsageError(
            f"The prompt {shorten(prompt)!r} has an empty part: say what to draw."
            if prompt.strip()
            else "The prompt is empty: say what to draw."
        )
    value = float(weight[1]) if weight else 1.0
    if math.isfinite(value) and abs(value) > MOST:
        raise UsageError(
            f"A weight is from -{MOST:g} to {MOST:g}, not {weight[1]}: where that is text, write "
            f"{shorten(text)}\\:{weight[1]}."
        )
    if not math.isfinite(value):
        raise UsageError(
            f"The weight of {shorten(text)!r} must be a finite number, not {weight[1]}."
        )
    return Part(text, value)


def _ends_words(pieces: list[str]) -> bool:
    """Return whether a weight may follow: after a letter, an emoji, a closing bracket or a quote.
    """
    text = "".join(piece[-1] for piece in pieces).rstrip(" \t\n" + _JOINERS)
    if not text:  # an empty part, which is an error of its own
        return True
    last = text[-1]
    return last.isalpha() or unicodedata.category(last)[0] == "M" or last in _CLOSING or (
        _is_pictograph(last)
    )


def _plain(pieces: list[str]) -> str:
    """Return the pieces without their escapes and repeated blanks, with each emoji named."""
    characters = (piece[-1] for piece in pieces)
    return " ".join("".join(map(_name_emoji, characters)).split())


def _name_emoji(character: str) -> str:
    if character in _JOINERS or 0x1F3FB <= ord(character) <= 0x1F3FF:  # skin tones
        return ""
    if not _is_pictograph(character):
        return character
    return f" {unicodedata.name(character, '').lower()} "


def _is_pictograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _PICTOGRAPHS)
