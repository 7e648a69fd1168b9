"""The styles of the generator: the word of each style, and the sets of drawings that have it.

A style is a class label of the decoder. Its word, after a comma, is part of the prior's text.
"""

from __future__ import annotations

STYLES = {  # word -> sets; label 0 is "any"
    "glossy": ("fluent-emoji",),
    "3d": ("fluent-emoji-3d",),
    "flat": ("fluent-emoji-flat", "flat-color-icons", "flat-ui"),
    "emoji": ("noto",),
    "simple": ("twemoji",),
    "retro": ("emojione", "noto-v1", "fxemoji"),
    "clip art": ("openclipart", "tango"),
    "outlined": ("streamline-emojis", "streamline-ultimate-color"),
    "sticker": (
        "streamline-kameleon-color",
        "streamline-stickies-color",
        "fluent-color",
        "meteocons",
    ),
    "game": ("arcade-kenney",),
}
WORDS = ("any", *STYLES)
LABEL = {name: k for k, names in enumerate(STYLES.values(), 1) for name in names}
PHRASES = ("{}", "{} icon", "{} style", "{} emoji")


def styled(caption: str, label: int, rng) -> str:
    """Return the caption, followed by the word of the style."""
    phrase = PHRASES[int(rng.integers(len(PHRASES)))]
    word = WORDS[label]
    if word in ("emoji", "clip art") or rng.random() < 0.5:
        phrase = "{}"
    return f"{caption}, {phrase.format(word)}"
