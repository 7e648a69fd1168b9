"""Random generators: one per sample, reseeded for another candidate, or restarted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ..errors import UsageError

STRIDE = 1_000_000  # candidate k of the image of seed s has the seed s + k·stride

Given = torch.Generator | Sequence[torch.Generator] | None


def reseeded(generator: Given, k: int) -> Given:
    """Return the generators of candidate k: the given ones for k = 0, otherwise new ones with their
    seeds plus k · STRIDE."""
    if generator is None or k == 0:
        return generator
    if not isinstance(generator, torch.Generator):
        return [reseeded(one, k) for one in generator]
    new = torch.Generator(generator.device)
    return new.manual_seed((generator.initial_seed() + k * STRIDE) % 2**63)


def restarted(generator: Given) -> Given:
    """Return copies of generators, in the state that they are in."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        return [restarted(one) for one in generator]
    new = torch.Generator(generator.device)
    new.set_state(generator.get_state())
    return new


def one_each(generators: Given, batch: int) -> list[torch.Generator]:
    """Return one generator for each sample.

    If there are none, return new ones with seed 0. If there is a single one, the first sample gets
    it, and sample i gets a new one with its seed plus i.

    Raises:
        UsageError: there are several, but not one for each sample.
    """
    if generators is None:
        return [torch.Generator().manual_seed(0) for _ in range(batch)]
    if isinstance(generators, torch.Generator):
        seed = generators.initial_seed()
        others = [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(1, batch)]
        return [generators, *others]
    if len(generators) != batch:
        raise UsageError(
            f"The pipeline samples {batch} images, and there are {len(generators)} generators."
        )
    return list(generators)


def streams(sample: torch.Tensor) -> list[torch.Generator]:
    """Return one generator for each sample. Its seed is the digest of the sample's first latents,
    so it differs between images and is the same in a batch and alone."""
    rows = sample.detach().float().cpu().numpy()
    digests = [hashlib.sha256(row.tobytes()).digest() for row in rows]
    return [torch.Generator().manual_seed(int.from_bytes(d[:7], "big")) for d in digests]
