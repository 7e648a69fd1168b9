"""The codes of the memory's drawings, which are fitted one by one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from clipguide import mini
from clipguide.mini.details import Details
from clipguide.mini.memory import MapMemory, split
from training import codes, details, memory

SEEN = 40


@pytest.fixture
def fitted() -> codes.Codes:
    """Codes of SEEN random maps."""
    draw = torch.Generator().manual_seed(0)
    kept = MapMemory(components=16, size=SEEN, detail_channels=details.CHANNELS)
    kept.remember(torch.randn(SEEN, 28, 4, 4, generator=draw))
    code = torch.randint(0, 4, (SEEN, 8, 8, 8), generator=draw) * 2 / 3 - 1
    return codes.Codes(kept, code, Details())


def test_the_fit_starts_from_the_codes(fitted):
    """What the fit starts from is what the memory would recall."""
    rows = [3, 0, 7]
    maps, code = split(fitted.remembered(rows).recall(range(3), [None] * 3), 28)
    assert_close(code, details.rounded(fitted.numbers[rows]))
    assert_close(maps, fitted.map(fitted.parts[rows]))
    assert_close(maps, split(fitted.memory.recall(rows, [None] * 3), 28)[0])


def test_the_fit_sees_what_the_memory_will_recall(fitted):
    """Also after a step, with numbers between two levels and outside of all."""
    fitted.parts += 9 * torch.randn(fitted.parts.shape)
    fitted.numbers += torch.randn(fitted.numbers.shape)
    maps, code = split(fitted.remembered(range(SEEN)).recall(range(SEEN), [None] * SEEN), 28)
    assert_close(code, details.rounded(fitted.numbers))
    assert_close(maps, fitted.map(fitted.parts))


def test_the_gradient_passes_the_rounding_of_maps(fitted):
    part = (fitted.parts[:2] + 0.3).requires_grad_()
    fitted.map(part).square().sum().backward()
    assert (part.grad != 0).all()


def test_a_step_is_one_of_adam_over_the_visits(fitted):
    """A candidate that is visited at every second step moves as if the others did not exist."""
    wanted = fitted.numbers[1:2].clone().requires_grad_()
    others = fitted.numbers[2:].clone()
    adam = torch.optim.Adam([wanted], 0.01 * codes.RATES["numbers"], betas=codes.BETAS)
    for step in range(6):
        gradient = {name: torch.randn_like(getattr(fitted, name)[:2]) for name in codes.RATES}
        row = torch.tensor([0, 1] if step % 2 else [0, 0])
        fitted.move(row, gradient, 0.01)
        if step % 2:
            wanted.grad = gradient["numbers"][1:]
            adam.step()
    assert_close(fitted.numbers[1:2], wanted.detach(), rtol=1e-4, atol=1e-5)
    assert_close(fitted.numbers[2:], others)
    assert fitted.visits.tolist() == [6, 3] + [0] * (SEEN - 2)


def test_the_gradients_of_two_samples_of_a_candidate_add_up(fitted):
    gradient = {name: torch.ones_like(getattr(fitted, name)[:2]) for name in codes.RATES}
    fitted.move(torch.tensor([5, 5]), gradient, 0.01)
    assert_close(fitted.numbers_mean[5], torch.full((8, 8, 8), 2 * (1 - codes.BETAS[0])))


ROWS = [
    {"thing": thing, "drawing": name}
    for thing, names in {
        "fox": ["a/1", "b/2", "c/3", "a/1#1"],
        "hen": ["a/4", "b/5", "b/5#1", "c/6"],
        "owl": ["a/7"],
        "elk": ["a/8"],
    }.items()
    for name in names
]
SAID = {
    "fox": {"a/1": "g", "b/2": "s", "c/3": "g", "a/1#1": "g"},
    "hen": {"a/4": "s", "b/5": "s", "b/5#1": "b", "c/6": "s"},
    "owl": {"a/7": "b"},
}


def test_the_memory_keeps_what_reviewers_liked(monkeypatch):
    """The good ones; else few so-so ones; nothing bad or never seen."""
    found = memory.choose(ROWS, SAID)
    assert {k: [ROWS[i]["drawing"] for i in v] for k, v in found.items()} == {
        "fox": ["a/1", "c/3", "a/1#1"], "hen": ["a/4", "b/5"],
    }  # fmt: skip
    monkeypatch.setattr(memory, "MAPS", 4)
    assert [*map(len, memory.choose(ROWS, SAID).values())] == [2, 2]


def test_the_verdicts_are_those_of_what_ships():
    """Their drawings are those of the maps, so that a fit can go on from the codes that ship."""
    said = memory.verdicts()
    names = [(thing, name) for thing, told in said.items() for name in told]
    found = memory.shipped(names, said)
    kept = MapMemory.from_pretrained(mini.path("generator") / "memory")
    assert len(found) == kept.config.size
    assert {names[k][0] for k in found} == {
        thing for thing, told in said.items() if {"g", "s"} & {*told.values()}
    }
    recalled = torch.cat([*map(torch.flatten, next(iter(found.values())))])
    maps, code = split(kept.recall([0], [None]), kept.config.channels)
    assert_close(recalled, torch.cat([maps.flatten(), code.flatten()]))
