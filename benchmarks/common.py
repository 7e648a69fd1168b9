"""Where the figures of searching go."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from clipguide.engine.resources import processors

OUT = Path(__file__).with_name("search.json")


def save(key: str, facts: dict) -> None:
    """Put a section into search.json."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    about = {"torch": torch.__version__, "processors": processors()}
    OUT.write_text(json.dumps({**known, key: {**about, **facts}}, indent=1) + "\n")
