"""Resample particles by their weights. Each is drawn number · weight times on average.

Shapes: K particles.
"""

from __future__ import annotations

import torch


def systematic(weight_K: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return where each particle comes from: one uniform number, K places that far apart (Kitagawa
    1996)."""
    number = len(weight_K)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    place_K = (torch.arange(number) + offset) / number
    return torch.searchsorted(weight_K.cumsum(0), place_K).clamp_max(number - 1)


def residual(weight_K: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return where each particle comes from: ⌊K·w⌋ copies of each, and the rest drawn in proportion
    to what is left of K·w (Liu & Chen 1998)."""
    number = len(weight_K)
    share_K = number * weight_K
    count_K = share_K.floor()
    rest = number - int(count_K.sum())
    if rest:
        left_K = (share_K - count_K).clamp_min(0)
        drawn = torch.multinomial(left_K, rest, replacement=True, generator=generator)
        count_K += torch.bincount(drawn, minlength=number)
    return torch.arange(number).repeat_interleave(count_K.long())


def ssp(weight_K: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return where each particle comes from, by Srinivasan's sampling process (Gerber, Chopin &
    Whiteley 2019): the fractions of K·w are paired off, and mass moves within a pair, either way in
    the mean alike, until one of the two is whole. Each count is within one of K·w, as of
    `systematic`, and the order of particles does not matter for consistency."""
    number = len(weight_K)
    share_K = number * weight_K
    count_K = share_K.floor()
    part = (share_K - count_K).tolist()
    drawn = torch.rand(number, generator=generator, dtype=torch.float64).tolist()
    first = 0
    for second in range(1, number):
        up = min(part[second], 1 - part[first])  # what the first may gain from the second
        down = min(part[first], 1 - part[second])
        if up + down > 0 and drawn[second] * (up + down) < down:
            part[first], part[second] = part[first] + up, part[second] - up
        else:
            part[first], part[second] = part[first] - down, part[second] + down
        if part[first] <= 1e-12 or part[first] >= 1 - 1e-12:
            first = second
    count_K += torch.tensor(part, dtype=count_K.dtype).round()
    missing = number - int(count_K.sum())  # of rounding, if at all
    count_K[int(weight_K.argmax())] += missing
    return torch.arange(number).repeat_interleave(count_K.long())


RESAMPLING = {"systematic": systematic, "residual": residual, "ssp": ssp}
