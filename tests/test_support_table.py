"""docs/support.md is what benchmarks/support_table.py makes now: a sample here, all when slow."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from tiny_pipelines import TINY

pytestmark = pytest.mark.filterwarnings("ignore")

FILE = Path(__file__).parent.parent / "benchmarks" / "support_table.py"
FAMILIES = [name for name in TINY if name != "mini"]  # which the package itself tests
SAMPLE = [("SDXL", "Heun"), ("FLUX", "flow UniPC"), ("DDPM", "TCD"), ("LCM", "LCM")]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("support_table", FILE)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_every_cell_is_there(script):
    cells = script.parsed(script.DOCUMENT.read_text())
    assert set(cells) == {(f, name) for f in FAMILIES for name in script.schedulers(f)}
    assert all(said == "yes" or said.startswith(("n/a (", "refused (")) for said in cells.values())


@pytest.mark.parametrize(("family", "scheduler"), SAMPLE)
def test_sample(script, family, scheduler):
    pipe, _ = script.prepared(family, scheduler)
    assert type(pipe).__name__ == script.CLASSES[family]
    said = script.cell(family, scheduler)
    word = said if said == "yes" else said.split(":")[0]
    assert script.parsed(script.DOCUMENT.read_text())[family, scheduler].split(" (")[0] == word


def on_the_page(script) -> dict[tuple[str, str], str]:
    """What `cell` said when the page was made."""
    text = script.DOCUMENT.read_text()
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    return {
        place: re.sub(r" \((\d+)\)$", lambda found: f": {notes[found[1]]}", said)
        for place, said in script.parsed(text).items()
    }


def test_the_page_is_of_these_cells(script, monkeypatch):
    """All of the page but whether a cell is still so: of each method and task it says what
    tests/test_matrix.py proves, and there are all methods of the package."""
    import test_matrix

    from clipguide.guidance import METHODS

    assert {config.name for config, _ in test_matrix.METHODS.values()} == set(METHODS)
    monkeypatch.setattr(test_matrix, "check", lambda *cell: None)  # it is tried there
    cells = on_the_page(script)
    monkeypatch.setattr(script, "cell", lambda *place: cells[place])
    assert script.table(FAMILIES) == script.DOCUMENT.read_text()


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_cells_are_still_so(script, family):
    for (name, scheduler), said in on_the_page(script).items():
        if name == family:
            assert type(script.prepared(name, scheduler)[0]).__name__ == script.CLASSES[name]
            assert script.cell(family, scheduler) == said, scheduler
