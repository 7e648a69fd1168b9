"""benchmarks/decoders.py: its shares by hand, and a run that goes on, on a tiny generator."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from benchmarks import decoders
from benchmarks.decoders import EXACT, PLAIN, Drawn, rows

pytestmark = pytest.mark.filterwarnings("ignore")


def test_rows():
    """Gains of the guide: exact 0.2 and 0.4, linear 0.1 and 0.05, so a quarter is kept; of the
    other CLIP nothing. A prompt that one decoder lacks does not count."""
    drawn = []
    for prompt, exact, cheap in (("a", 0.2, 0.1), ("b", 0.4, 0.05)):
        drawn += [
            Drawn(prompt, PLAIN, 0.1, 0.3, 2.0),
            Drawn(prompt, EXACT, 0.1 + exact, 0.4, 8.0),
            Drawn(prompt, "linear", 0.1 + cheap, 0.3, 3.0),
        ]
    exact, linear = rows([*drawn, Drawn("c", PLAIN, 0.0, 0.0, 1.0)])
    assert (exact.decoder, exact.cost, exact.guide_kept[0]) == (EXACT, 4.0, 1.0)
    assert exact.guide == pytest.approx(300) and exact.other == pytest.approx(100)
    assert linear.guide == pytest.approx(75) and linear.guide_kept[0] == pytest.approx(0.25)
    assert (linear.other_kept[0], linear.cost) == (pytest.approx(0.0), 1.5)
    assert linear.guide_kept[1] > 0.05  # 0.5, 0.125 or 0.25: which prompts are drawn again


def test_it_goes_on(tiny_mini, tmp_path, monkeypatch):
    """A prompt that is in the records is not drawn again, unless other models drew it; the table
    stands in the document."""
    monkeypatch.setattr(decoders, "DECODERS", (EXACT, "vae:half", "linear"))
    monkeypatch.setattr(decoders, "things", lambda number: ["a fox", "an owl"][:number])
    document = tmp_path / "memory.md"
    document.write_text(f"before\n{decoders.BEGIN}old\n{decoders.END}\nafter\n")
    records = ["--records", str(tmp_path / "r.jsonl")]

    def run(*arguments):
        result = CliRunner().invoke(decoders.app, [*arguments, *records])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert run("draw", "--prompts", "1", "--steps", "2") == "a fox: 4 images\n"
    assert run("draw", "--prompts", "2", "--steps", "2") == "an owl: 4 images\n"
    file = tmp_path / "r.jsonl"
    lines = file.read_text().splitlines()
    names = [json.loads(line)["decoder"] for line in lines]
    assert names == [PLAIN, EXACT, "vae:half", "linear"] * 2
    out = tmp_path / "decoders.json"
    table = run("table", "--document", str(document), "--out", str(out))
    assert table.count("\n| ") == 3 and "vae:whole (default here) |" in table
    text = document.read_text()
    assert table in text and "2 prompts" in text and "old" not in text
    assert json.loads(out.read_text())["prompts"] == 2
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    file.write_text(re.sub('"models": "', '"models": "x', file.read_text()))
    assert CliRunner().invoke(decoders.app, ["table", *records]).exit_code == 2
    assert run("draw", "--prompts", "1", "--steps", "2") == "a fox: 4 images\n"
