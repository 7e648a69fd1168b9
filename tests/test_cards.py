"""The models' cards quote training/figures.json, and nothing else."""

import json

import pytest
import yaml

from clipguide import mini
from training.evaluate import cards
from training.evaluate.ledger import BARS, FIGURES, Ledger, figure, fingerprint

FIELDS = ("name", "licence", "task", "data", "figures")


@pytest.mark.parametrize("name", mini.MODELS)
def test_the_shipped_card_is_the_rendered_one(name):
    shipped = (mini.path(name) / "README.md").read_text(encoding="utf-8")
    assert shipped == cards.card(name, mini.path(name)), "run: python -m training.evaluate cards"


@pytest.mark.parametrize("name", mini.MODELS)
def test_every_text_has_a_head_and_a_place_for_figures(name):
    text = (cards.TEXTS / f"{name}.md").read_text(encoding="utf-8")
    assert text.count(cards.MARK) == 1
    head = yaml.safe_load(text.split("---\n", 2)[1])
    assert tuple(head) == FIELDS[:-1] and all(head.values())


def test_a_card_tells_value_bar_number_and_stale_weights():
    text = (cards.TEXTS / "vqgan.md").read_text(encoding="utf-8")
    figures = [
        figure("vqgan: PSNR", 22.5, n=541, weights={"vqgan": "old"}),
        figure("vqgan: codes used", 0.875, n=541, weights={"vqgan": "new"}, note="of 1024"),
        figure("guide: OpenMoji, top-1", 0.5, n=9, weights={}),
    ]
    rendered = cards.render(text, figures, "new", "vqgan")
    head = yaml.safe_load(rendered.split("---\n", 2)[1])
    assert tuple(head) == FIELDS
    assert head["figures"] == {"PSNR": "22.50 dB", "codes used": "87.5 %"}
    rows = [line for line in rendered.splitlines() if line.startswith(("| PSNR", "| codes"))]
    assert "**missed**" in rows[0] and cards.STALE in rows[0] and "541" in rows[0]
    assert ">= 80.0 %, met" in rows[1] and cards.STALE not in rows[1] and "of 1024" in rows[1]


def test_no_figure_is_of_a_model_that_is_not_in_the_tree():
    """A figure of an older model is measured again or deleted."""
    now = {name: fingerprint(mini.path(name)) for name in mini.MODELS}
    for found in Ledger(FIGURES).figures.values():
        for name in found.weights.keys() & now.keys():
            assert found.weights[name] == now[name], f"{found.key}: measure it again"


def test_a_card_without_figures_says_so():
    text = (cards.TEXTS / "judge.md").read_text(encoding="utf-8")
    assert "Not measured yet." in cards.render(text, [], "new", "judge")


def test_the_ledger_keeps_what_was_not_measured_again(tmp_path):
    path = tmp_path / "figures.json"
    first, second = list(BARS)[:2]
    Ledger(path).record(figure(second, 0.9, n=2, weights={"guide": "a"}))
    Ledger(path).record(figure(first, 0.1, n=1, weights={"guide": "a"}))
    kept = Ledger(path).figures
    assert list(kept) == [first, second]
    assert not kept[first].met() and kept[second].met()
    assert all(row["date"] for row in json.loads(path.read_text())["figures"])
    assert " NO " in Ledger(path).table([first])


def test_two_groups_side_by_side_keep_each_others_figures(tmp_path):
    path, names = tmp_path / "figures.json", list(BARS)[:3]
    one, other = Ledger(path), Ledger(path)
    for ledger, name, value in ((one, 0, 0.1), (other, 1, 0.2), (one, 2, 0.3), (other, 0, 0.4)):
        ledger.record(figure(names[name], value, n=1, weights={"guide": "a"}))
    assert [Ledger(path).figures[name].value for name in names] == [0.4, 0.2, 0.3]
    one.record(figure(names[1], 0.5, n=1, weights={"guide": "a"}))
    assert Ledger(path).figures[names[0]].value == 0.4  # not what `one` had measured before


def test_a_fingerprint_is_of_names_and_bytes(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    one = fingerprint(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert len(one) == 12 and fingerprint(tmp_path) != one
