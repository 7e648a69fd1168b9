"""docs/support.md is what benchmarks/support_table.py makes now: a sample here, all when slow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from tiny_pipelines import TINY

pytestmark = pytest.mark.filterwarnings("ignore")

FILE = Path(__file__).parent.parent / "benchmarks" / "support_table.py"
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
    families = set(TINY) - {"mini"}
    assert set(cells) == {(f, name) for f in families for name in script.schedulers(f)}
    assert all(said == "yes" or said.startswith(("n/a (", "refused (")) for said in cells.values())


@pytest.mark.parametrize(("family", "scheduler"), SAMPLE)
def test_sample(script, family, scheduler):
    said = script.cell(family, scheduler)
    word = said if said == "yes" else said.split(":")[0]
    assert script.parsed(script.DOCUMENT.read_text())[family, scheduler].split(" (")[0] == word


def test_the_methods_are_the_matrixs(script, monkeypatch):
    """The page says of each method and task what tests/test_matrix.py proves of it."""
    import test_matrix

    monkeypatch.setattr(test_matrix, "check", lambda *cell: None)  # it is tried there
    assert "\n".join(script.methods()) in script.DOCUMENT.read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_page_is_current(script):
    pytest.importorskip("torchsde")  # the page was made with it
    assert script.table(list(TINY)) == script.DOCUMENT.read_text()
