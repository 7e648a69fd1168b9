"""Every sample runs and makes its image; the images beside them are what their table says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from clipguide import mini
from clipguide.errors import ClipguideError
from clipguide.prompts import parse

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
PICTURES = SAMPLES / "pictures"
SCRIPTS = sorted(SAMPLES.glob("*.py"))
FREE = {"public domain", "CC0-1.0", "MIT"}


@pytest.fixture
def models(request):
    """The embedded models, or tiny ones where the package was built without."""
    try:
        for name in ("guide", "judge", "generator"):
            mini.check(name)
    except ClipguideError:
        request.getfixturevalue("tiny_mini")


def check(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "picture.png"
    runpy.run_path(str(script))["main"](quick=True, out=out)
    with Image.open(out) as picture:
        low, high = picture.convert("L").getextrema()
    assert high > low, "the image is blank"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script(script, tiny_mini, tmp_path, monkeypatch):
    check(script, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_with_the_embedded_models(script, models, tmp_path, monkeypatch):
    check(script, tmp_path, monkeypatch)


def test_every_script_is_listed():
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", (SAMPLES / "README.md").read_text(), re.M)
    assert sorted(listed) == [script.name for script in SCRIPTS]


def test_scripts_are_short():
    assert all(len(script.read_text().splitlines()) <= 50 for script in SCRIPTS)


def test_contact_sheet_prompts():
    """Sixty-four, all different, and each a prompt."""
    prompts = runpy.run_path(str(SAMPLES / "contact_sheet.py"))["PROMPTS"]
    assert len(set(prompts)) == 64
    assert all(parse(prompt).text for prompt in prompts)


def test_pictures():
    """Forty small PNGs, each with a row in the table and a licence that lets anybody use it."""
    table = (PICTURES / "LICENCES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+\.png) \| (.*) \|$", table, re.M)
    files = sorted(PICTURES.glob("*.png"))
    assert [name for name, _ in rows] == [file.name for file in files]
    assert len(files) == 40
    assert {columns.split(" | ")[2] for _, columns in rows} <= FREE
    assert sum(file.stat().st_size for file in files) < 1_500_000
    for file in files:
        with Image.open(file) as picture:
            assert picture.mode == "RGB" and picture.size == (160, 160)
