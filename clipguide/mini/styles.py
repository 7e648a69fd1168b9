"""The styles of the embedded generator: the words in a prompt that select one, and their labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..errors import UsageError, close_matches

STYLES = (
    "any",
    "glossy",
    "3d",
    "flat",
    "emoji",
    "simple",
    "retro",
    "clip art",
    "outlined",
    "sticker",
    "game",
)
USUAL = ("glossy", "3d", "flat", "emoji", "simple", "retro")  # styles that have nearly all objects


def style_in(prompt: str) -> str | None:
    """Return the style that a prompt names, or None."""
    words = f" {prompt.lower().replace(',', ' ')} "
    return next((style for style in STYLES[1:] if f" {style} " in words), None)


def with_style(prompt: str, style: str) -> str:
    """Return the prompt in the form of the training data: with a comma and the style at its end,
    unless the style is in it."""
    return prompt if style == "any" or style in prompt.lower() else f"{prompt}, {style}"


def labels_of(
    prompts: Sequence[str],
    style: str | None,
    usual: Sequence[str] = USUAL,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[int]:
    """Return a label for each prompt: that of `style`, or of the style that the prompt names, or a
    random one of the usual styles.

    Raises:
        UsageError: there is no such style.
    """
    if style is not None and style not in STYLES:
        raise UsageError(f"There is no style {style!r}.{close_matches(style, STYLES)}")
    by_chance = randn_tensor((len(prompts), 1), generator=generator, device=torch.device("cpu"))
    share_B = torch.special.ndtr(by_chance[:, 0].double())  # uniform, from the seed of the image
    labels = []
    for prompt, share in zip(prompts, share_B.tolist()):
        named = style or style_in(prompt) or usual[min(int(share * len(usual)), len(usual) - 1)]
        labels.append(STYLES.index(named))
    return labels
