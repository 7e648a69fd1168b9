"""How the memory of the embedded generator is built, and the one that ships."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipguide import mini
from clipguide.mini.memory import MapMemory, split
from clipguide.mini.names import AMONG, BETWEEN, COLOURS
from clipguide.mini.styles import STYLES
from training import memory


def shipped() -> MapMemory:
    return MapMemory.from_pretrained(mini.path("generator") / "memory")


def test_what_ships_is_what_reviewers_kept():
    """Only things with a drawing that was good or so-so, each with at least one map."""
    kept, said = shipped(), memory.verdicts()
    config = kept.config
    assert len(config.things) == len(config.firsts) and config.firsts[0] == 0
    ends = [*config.firsts[1:], config.size]
    assert all(first < end for first, end in zip(config.firsts, ends))
    expected = sorted(t for t, of in said.items() if {"g", "s"} & set(of.values()))
    assert len(expected) == len(config.things) > 1000
    for thing, line, first, end in zip(expected, config.things, config.firsts, ends):
        best = "g" if "g" in said[thing].values() else "s"
        number = list(said[thing].values()).count(best)
        assert 1 <= end - first <= 2 * number, thing
        assert line.count(BETWEEN) == 2, thing


def test_the_shipped_memory_finds_its_things():
    kept = shipped()
    missed = []
    for k, line in enumerate(kept.config.things):
        name = line.partition(BETWEEN)[0].partition(AMONG)[0]
        found = kept.names.find(f"a {name}")
        missed += [] if found and k in found.things else [name]
    # Names such as "2 hearts" or "bread and butter" read as several things.
    assert len(missed) < 0.04 * len(kept.config.things), missed


def test_the_shipped_maps_are_in_range():
    kept = shipped()
    rows = range(0, kept.config.size, 50)
    maps, _ = split(kept.recall(rows, [None] * len(rows)), kept.config.channels)
    assert maps.isfinite().all() and 0.7 < maps.std() < 1.3
    assert int(kept.style.max()) < len(STYLES) and int(kept.colour.max()) <= len(COLOURS)
    assert 0 not in kept.style.tolist()


def test_another_colour_moves_the_colours_of_the_map():
    """The channels after the components of the features are red, green and blue of each quarter."""
    kept = shipped()
    named = kept.names.find("a car")
    rows = kept.rows(named)
    (red, details), (blue, same) = (
        split(kept.recall(rows, [colour] * len(rows)), kept.config.channels)
        for colour in ("red", "blue")
    )
    assert torch.equal(details, same)  # they say nothing of colours
    colours = (red - blue)[:, 16:].unflatten(1, (3, 4)).mean((0, 2, 3, 4))
    assert colours[0] > 0.2 and colours[2] < -0.2


def test_recolouring_is_learned():
    """From pairs where a colour adds its own constant: little of the change is left on things that
    were set aside."""
    torch.manual_seed(0)
    before, colour = torch.randn(400, 6, 4, 4), torch.randint(0, len(COLOURS), (400,))
    added = torch.randn(len(COLOURS), 6)[colour][..., None, None]
    pairs = {"before": before, "after": before + added, "colour": colour}
    pairs["thing"] = [f"thing {k % 40}" for k in range(400)]
    new = MapMemory(channels=6, components=2, hidden=16)
    assert memory.train(new, [pairs, pairs], steps=300) < 0.1


class Drawings:
    """What `varied` asks of the training data."""

    places = {4: 0}

    def __init__(self) -> None:
        self.rgba = np.zeros((5, 64, 64, 4), np.uint8)
        self.rgba[4, 16:48, 8:56] = (200, 30, 30, 255)

    def mirrored(self, rgba: np.ndarray, row: dict, rng: np.random.Generator) -> np.ndarray:
        return rgba


def test_a_drawing_is_varied():
    """The same from the same seed, another from another, and never as it was."""
    data, row = Drawings(), {"index": 4}
    one, again, other = (memory.varied(data, row, seed) for seed in (0, 0, 1))
    assert one.shape == (memory.SIDE, memory.SIDE, 3)
    assert (one == again).all() and (one != other).any()
    red = (one[..., 0] > 120) & (one[..., 1] < 90)
    assert 0.1 < red.mean() < 0.5 and tuple(one[red].mean(0)) != (200, 30, 30)
    painted = data.rgba[4][..., [2, 1, 0, 3]]
    blue = memory.varied(data, row, 0, painted)
    same = (blue[..., 2] > 120) & (blue[..., 1] < 90)
    assert same.mean() == pytest.approx(red.mean(), abs=0.01)


def test_verdicts_are_kept(tmp_path, monkeypatch, capsys):
    """Things on no sheet keep theirs, and a variant there has that of its drawing."""
    monkeypatch.setattr(memory, "SHEETS", tmp_path)
    monkeypatch.setattr(memory, "CANDIDATES", tmp_path / "candidates.pt")
    monkeypatch.setattr(memory, "VERDICTS", tmp_path / "memory.tsv")
    things = ("fox", "fox", "hen", "hen", "owl", "owl")
    rows = [{"thing": t, "drawing": f"noto/{t}{k % 2}"} for k, t in enumerate(things)]
    rows.insert(4, {"thing": "hen", "drawing": "noto/hen0#1"})
    torch.save({"rows": rows}, tmp_path / "candidates.pt")
    (tmp_path / "memory.tsv").write_text("fox\tb noto/fox0\nhen\tg noto/hen0\ts noto/hen1\n")
    (tmp_path / "names.json").write_text('["fox", "owl"]')
    (tmp_path / "a.tsv").write_text("0000\tgb\tss\n")
    memory.keep([tmp_path / "a.tsv"])
    assert "7 drawings of 3 things: 43% g, 43% s, 14% b" in capsys.readouterr().out
    assert memory.verdicts() == {
        "fox": {"noto/fox0": "g", "noto/fox1": "b"},
        "hen": {"noto/hen0": "g", "noto/hen1": "s", "noto/hen0#1": "g"},
        "owl": {"noto/owl0": "s", "noto/owl1": "s"},
    }
