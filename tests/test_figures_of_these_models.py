"""A figure is of the models that are in the tree, or it is not in the tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import figures
from clipguide import load_clip, mini
from training.evaluate.ledger import fingerprint

ROOT = Path(__file__).parents[1]
AUTO = ROOT / "clipguide" / "guidance" / "auto.json"
FILES = sorted([*ROOT.glob("benchmarks/*.json"), *ROOT.glob("training/*.json"), AUTO])
OF_ITS_DAY = {
    # Two guides of one day, side by side, as its page says.
    "training/guiding.json",
}


def named(value: object, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(where, model, digest) of each fingerprint that a JSON value names: under "weights" or
    "models" by the model's name, under "fingerprint" by that of the CLIP around it."""
    if isinstance(value, list):
        for k, one in enumerate(value):
            yield from named(one, f"{path}[{k}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            where = f"{path}.{key}"
            if key in ("weights", "models") and isinstance(one, dict):
                yield from ((where, model, digest) for model, digest in one.items())
            elif key == "fingerprint":
                yield where, path.rpartition(".")[2], one
            else:
                yield from named(one, where)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_fingerprint_is_of_the_tree(file):
    place = file.relative_to(ROOT).as_posix()
    if place in OF_ITS_DAY:
        return
    old = []
    for where, model, digest in named(json.loads(file.read_text(encoding="utf-8"))):
        if model == "referee":  # it is not shipped
            continue
        if model in mini.MODELS:
            here = fingerprint(mini.path(model))
        else:
            here = load_clip(model).fingerprint
        if digest != here:
            old.append(f"{where}: {model}")
    assert not old, (
        f"{place} has figures of other models than those of this tree: measure them again, or "
        f"delete them. {old}"
    )


def test_the_search_for_fingerprints():
    value = {"a": [{"weights": {"guide": "1", "referee": "2"}}], "mini": {"fingerprint": "3"}}
    assert list(named(value)) == [
        (".a[0].weights", "guide", "1"), (".a[0].weights", "referee", "2"),
        (".mini.fingerprint", "mini", "3"),
    ]  # fmt: skip


def test_what_is_stale_is_not_shown(monkeypatch, tmp_path):
    """Rows of the present models are shown, those of others said to be missing."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    now = {"guide": fingerprint(mini.path("guide")), "referee": "whatever"}
    row = {"prompts": 50, "top5": 0.5, "steps": 80}
    facts = {
        "memory": {"512 ÷ 32": 1.0},
        "tile": {"tile": 1.0, "none": 7.0, "pictures": 6},
        "minute pixels": {**row, "models": now},
        "minute fourier": {**row, "models": {"guide": "0" * 12}},
        "minute vqgan": row,
    }
    (tmp_path / "benchmarks" / "canvases.json").write_text(json.dumps(facts))
    page = figures.canvases()
    assert "| pixels | 50 | 50 % | 80 |" in page
    assert "Not measured on the present weights: fourier, vqgan" in page
    assert figures.NONE_YET in figures.steering()
    one = {"way": "shortcut 0.1", "best_of": 2, "method": "shortcut", "cost": 1.5, "gain": 0.02,
           "error": 0.003, "top5": 0.8, "better": 0.7, "worse": 0.01, "spread": 0.2,
           "prompts": 7, "score": 0.2, "guide": 0.3, "options": {"strength": 0.1}}  # fmt: skip
    seen = {"fooled": 9, "sound": 31, "caught": 0.444, "false": 0.032, "threshold": 0.012}
    classes = {"food": {"prompts": 1, "gain": -0.01, "error": None},
               "objects": {"prompts": 4, "gain": 0.02, "error": 0.005}}  # fmt: skip
    pair = {"peer": "community 1", "ours": ["a", "b"], "prompts": 9, "peer_cost": 9.0, "cost": 4.5,
            "peer_gain": 0.04, "peer_error": 0.008, "gain": 0.03, "error": 0.006}  # fmt: skip
    for models, shown in ((now, True), ({"guide": "1"}, False), ({"referee": "2"}, False)):
        data = {"models": models, "prompts": 7, "rows": [one],
                "fewer": [{**one, "way": "rare", "best_of": 1}], "versus": [pair],
                "budgets": {"1.5": [one]}, "auto": {"1.5": ["shortcut 0.1, best of 2", 0.934]},
                "judge": seen, "classes": {"default": classes}}  # fmt: skip
        (tmp_path / "benchmarks" / "steering.json").write_text(json.dumps(data))
        page = figures.steering()
        assert ("| shortcut 0.1, best of 2 | 7 | 1.50 | +20.0" in page) is shown
        assert ("| 1.5 | shortcut | shortcut 0.1, best of 2 | 1.50 | +20.0 ± 3.0 | 80.0 % | 70 % "
                "| 1.0 % | 0.200 |" in page) is shown  # fmt: skip
        assert ("| 1.5 | shortcut 0.1, best of 2 | 0.93 |" in page) is shown
        assert ("| rare | 7 | 1.50 | +20.0 ± 3.0 |" in page) is shown
        assert ("| community 1 | 9 | 9.00 | +40.0 ± 8.0 | a or b | 4.50 | +30.0 ± 6.0 | 0.75 |"
                in page) is shown  # fmt: skip
        assert ("| default | food | 1 | -10.0 |" in page) is shown
        assert ("| default | objects | 4 | +20.0 ± 5.0 |" in page) is shown
        assert ("more than 0.012 in 44 % of the former and in 3.2 % of" in page) is shown
