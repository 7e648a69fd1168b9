"""Random generators: one per sample, reseeded for another candidate, restarted, or caught up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ..errors import UsageError

STRIDE = 1_000_000  # candidate k of the image of seed s has the seed s + k·stride

Given = torch.Generator | Sequence[torch.Generator] | None


def reseeded(generator: Given, k: int) -> Given:
    """Return the generators of candidate k: the given ones for k = 0, otherwise new ones.

    The new seed is k · STRIDE plus the generator's seed if nothing was drawn from it yet, otherwise
    plus a digest of its state.
    """
    if generator is None or k == 0:
        return generator
    if not isinstance(generator, torch.Generator):
        return [reseeded(one, k) for one in generator]
    new, seed = torch.Generator(generator.device), generator.initial_seed()
    if not torch.equal(new.manual_seed(seed).get_state(), generator.get_state()):
        seed = _seed(generator.get_state())
    return new.manual_seed((seed + k * STRIDE) % 2**63)


def chosen(generator: Given, k_B: Sequence[int]) -> Given:
    """Return the generators of candidate k_B[i] of each image i. A single generator draws all
    images, so that k_B has one number."""
    if isinstance(generator, torch.Generator):
        return reseeded(restarted(generator), k_B[0])
    return [reseeded(restarted(one), k) for one, k in zip(generator, k_B, strict=True)]


def ranked(generator: Given, score_KB: torch.Tensor) -> list[list[int]]:
    """Return the numbers of the candidates of each image, best first: a list for each rank. A
    single generator draws all images, so that their mean score counts."""
    if isinstance(generator, torch.Generator):
        score_KB = score_KB.mean(1, keepdim=True)
    return score_KB.argsort(dim=0, descending=True, stable=True).tolist()


def restarted(generator: Given) -> Given:
    """Return copies of generators, in the state that they are in."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        return [restarted(one) for one in generator]
    new = torch.Generator(generator.device)
    new.set_state(generator.get_state())
    return new


def one_seed() -> torch.Generator:
    """Return a generator of a seed that the global one draws, for a call that was given none and
    draws several times."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def catch_up(generator: Given, other: Given) -> None:
    """Put generators into the states that others are in."""
    if isinstance(generator, torch.Generator):
        generator.set_state(other.get_state())
        return
    for one, ahead in zip(generator or (), other or (), strict=True):
        catch_up(one, ahead)


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
    return [torch.Generator().manual_seed(_seed(row)) for row in sample.detach().float().cpu()]


def _seed(numbers: torch.Tensor) -> int:
    """Return a seed that is the digest of a tensor on the CPU."""
    return int.from_bytes(hashlib.sha256(numbers.numpy().tobytes()).digest()[:7], "big")
