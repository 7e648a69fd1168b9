"""docs/guides.md says what the table of families says, and names that are to be had."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError
from clipguide.guidance.guides import GUIDES

PAGE = (Path(__file__).parent.parent / "docs" / "guides.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_families():
    rows = re.findall(r"^\| [^|]+ \| `(\S+/\S+)` \| (\d+) MB \| (\S+) \|$", PAGE, re.M)
    wanted = {(g.name, str(g.megabytes), g.licence) for g in GUIDES.values()}
    assert set(rows) == wanted and len(rows) == len(wanted)
    known = {f"{model}/{tag}" for model, tag in open_clip.list_pretrained()}
    assert {name for name, *_ in rows} <= known


def test_a_name_on_the_hub():
    """No hub can be reached in a test; the sentence says so."""
    with pytest.raises(ClipguideError, match="hf-hub:nobody/nothing cannot be loaded: .*cache"):
        load_clip("hf-hub:nobody/nothing")


def test_a_word_is_learned_as_the_page_has_it(tmp_path, monkeypatch):
    (code,) = [c for c in re.findall("```python\n(.*?)```", PAGE, re.DOTALL) if "Inversion" in c]
    (tmp_path / "samples").symlink_to(Path(__file__).parent.parent / "samples")
    monkeypatch.chdir(tmp_path)
    told: dict = {}
    exec(compile(code, "guides.md", "exec"), told)
    clip, plain = told["clip"], load_clip("mini")
    image_BD = plain.encode_pictures(told["examples"])
    cosines = [(image_BD @ c.encode_text(["a blorvek"]).T).mean() for c in (plain, clip)]
    assert cosines[1] > cosines[0] + 0.3
