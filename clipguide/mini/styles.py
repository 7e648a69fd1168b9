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
    usual: Sequence[Sequence[str]] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[int]:
    """Return a label for each prompt: that of `style`, or of the style that the prompt names, or a
    random one of the usual styles, which are USUAL or `usual` of each prompt.

    Raises:
        UsageError: there is no such style.
    """
    if style is not None and style not in STYLES:
        raise UsageError(f"There is no style {style!r}.{close_matches(style, STYLES)}")
    usual = usual or [USUAL] * len(prompts)
    by_chance = chosen([len(styles) for styles in usual], generator)
    return [
        STYLES.index(style or style_in(prompt) or styles[k])
        for prompt, styles, k in zip(prompts, usual, by_chance)
    ]


def chosen(
    counts: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> list[int]:
    """Return a random number below each count, from one generator or from one for each count."""
    first = generator[0] if isinstance(generator, Sequence) else generator
    device = torch.device("cpu") if first is None else first.device  # a GPU's draws only there
    by_chance = randn_tensor((len(counts), 1), generator=generator, device=device).cpu()
    share_B = torch.special.ndtr(by_chance[:, 0].double())  # uniform, from the seed of the image
    return [min(int(share * n), n - 1) for share, n in zip(share_B.tolist(), counts)]
