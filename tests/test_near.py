"""Near-duplicates among unit vectors: the same as by comparing each with each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipguide import near
from clipguide.near import Neighbours


def vectors(count: int = 400, width: int = 96) -> torch.Tensor:
    """Unit vectors, of which many are nearly the same, some the same, and some nothing at all."""
    random = torch.Generator().manual_seed(0)
    base_ND = torch.randn(count // 4, width, generator=random) * torch.linspace(2, 0.1, width)
    place_N = torch.randint(len(base_ND), (count,), generator=random)
    noise_ND = torch.randn(count, width, generator=random)
    unit_ND = base_ND[place_N] + 0.3 * noise_ND * torch.rand(count, 1, generator=random)
    unit_ND = torch.nn.functional.normalize(unit_ND, dim=1)
    unit_ND[7], unit_ND[300], unit_ND[20:23] = unit_ND[50], unit_ND[50], 0
    return unit_ND


def everything(unit_ND, cosine, order, drops):
    """Each place in order with the later ones that are near it, by all cosines."""
    near_NN = (unit_ND.double() @ unit_ND.double().T).numpy() >= cosine
    gone, found = set(), {}
    for number, place in enumerate(order):
        if place in gone:
            continue
        found[place] = [o for o in order[number + 1 :] if near_NN[place, o] and o not in gone]
        if drops:
            gone.update(found[place])
    return {place: sorted(other) for place, other in found.items()}


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("rows", [7, 512])
@pytest.mark.parametrize("cosine", [0.3, 0.9, 0.985])
def test_as_all_pairs(monkeypatch, cosine, rows, drops):
    monkeypatch.setattr(near, "ROWS", rows)
    monkeypatch.setattr(near, "COLUMNS", 64)
    unit_ND = vectors()
    order = np.random.default_rng(1).permutation(len(unit_ND)).tolist()
    around, found = Neighbours(unit_ND, cosine, order), {}
    for place, other_M in around:
        found[place] = sorted(other_M.tolist())
        if drops:
            around.drop(other_M)
    assert list(found) == [place for place in order if place in found]
    assert found == everything(unit_ND, cosine, order, drops)
    assert 50 < sum(map(len, found.values()))


def test_any_order_has_the_same_pairs():
    unit_ND = vectors()
    pairs = [
        {frozenset((place, int(o))) for place, other_M in around for o in other_M}
        for around in (Neighbours(unit_ND, 0.9), Neighbours(unit_ND, 0.9, range(len(unit_ND))))
    ]
    assert pairs[0] == pairs[1] and len(pairs[0]) > 50


@pytest.mark.parametrize("count", [1, 2])
def test_few(count):
    same_ND = torch.eye(3)[[0] * count]
    found = {place: other_M.tolist() for place, other_M in Neighbours(same_ND, 0.98, range(count))}
    assert found == ({0: []} if count == 1 else {0: [1], 1: []})
