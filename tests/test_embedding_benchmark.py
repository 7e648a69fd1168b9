"""benchmarks/embedding.py on few images: its ratios, its images, what it says of odd files."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from benchmarks import embedding
from clipguide import load_clip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "OUT", tmp_path / "embedding.json")


def test_pictures_are_like_photographs():
    with embedding.photographs(3) as paths:
        for path in paths:
            with Image.open(path) as picture:
                assert picture.size == (512, 512) and picture.mode == "RGB"
            assert 40_000 < path.stat().st_size < 160_000
    assert not paths[0].exists()


def test_rates(monkeypatch):
    """By a clock that each image moves on by a tenth of a second, or by half of one."""
    now = [0.0]
    monkeypatch.setattr(embedding.time, "perf_counter", lambda: now[0])

    def way(seconds):
        return lambda paths: now.__setitem__(0, now[0] + seconds * len(paths))

    ways = {"quick": way(0.1), "one at a time": way(0.5)}
    found = embedding.rates(ways, list(range(8)), rounds=2)
    assert found == {"quick": pytest.approx([10, 10]), "one at a time": pytest.approx([2, 2])}


def test_the_peer_sees_what_we_see(monkeypatch):
    """The DataLoader's vectors are the engine's, in order."""
    import open_clip

    from clipguide import mini
    from clipguide.engine import Engine

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{mini.path('guide')}")
    seen, encode = [], model.eval().encode_image
    monkeypatch.setattr(
        model, "encode_image", lambda *a, **k: seen.append(encode(*a, **k)) or seen[-1]
    )
    with embedding.photographs(5) as paths:
        embedding.peer(model, transform, paths, 2)
        ours = torch.stack([row.unit_D for row in Engine(load_clip("mini")).embed(paths)])
    torch.testing.assert_close(ours, torch.cat(seen), atol=1e-5, rtol=0)


def test_speed():
    facts = embedding.speed(clip="mini", pictures=8, rounds=1)
    assert facts["rows"]["DataLoader"]["ratio"] == 1
    assert all(row["pictures a second"] > 0 for row in facts["rows"].values())
    assert facts["second pass"] > 2
    assert facts["change of a cosine"]["{'fast': True}"] < 0.1
    assert "speed mini" in embedding.OUT.read_text()


@pytest.mark.slow
def test_memory():
    facts = embedding.memory(pictures=400)
    assert facts["pictures"] == 400 and 50 < facts["settled MB"] <= facts["peak MB"]
    assert 0.8 < facts["ratio"] < 1.2


@pytest.mark.slow
def test_odd_files():
    facts = embedding.odd(files=140)
    assert facts["files"] == 140 and facts["embedded"] + facts["unreadable"] == 140
    assert facts["named once"] == facts["unreadable"] and facts["embedded as expected"]
    assert (facts["exit"], facts["exit with --strict"]) == (0, 1) and not facts["traceback"]
