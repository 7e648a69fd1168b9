"""Each `python -m training.…` or `python -m benchmarks.…` that a text of the project names exists.

Most are typer applications. Of a module that parses its arguments itself, only the module is looked
up. A typer application with a single command takes no name of a command, so the name would
be an unexpected argument: that is a fault too.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.main import get_command

ROOT = Path(__file__).parents[1]
NAMED = re.compile(
    r"(?:-m |step [a-z]+ |`)((?:training|benchmarks)(?:\.[a-z_]+)+)((?: +[\w./=:${}\"-]+)*)"
)
TEXTS = sorted(
    file
    for place in ("README.md", "training", "benchmarks", "docs", "clipguide/mini")
    for kind in ("*.md", "*.sh", "*.py")
    for file in ((ROOT / place).rglob(kind) if (ROOT / place).is_dir() else [ROOT / place])
    if "cache" not in file.parts and file.suffix == kind[1:]
)


def commands() -> list[tuple[str, str, str]]:
    """Return (file, module, arguments) of each command in the texts."""
    return [
        (file.relative_to(ROOT).as_posix(), found[1].rstrip("."), found[2])
        for file in TEXTS
        for found in NAMED.finditer(file.read_text("utf-8"))
    ]


@cache
def app(module: str) -> typer.Typer | None:
    """Return the typer application of a module, or None if it parses its arguments itself.

    resvg, which only the builder of the data needs and CI does not have, may be absent: no option
    depends on it.
    """
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    absent = importlib.util.find_spec("resvg_py") is None
    if absent:
        sys.modules["resvg_py"] = types.ModuleType("resvg_py")
    try:
        return getattr(importlib.import_module(module), "app", None)
    finally:
        if absent:
            del sys.modules["resvg_py"]


def test_there_are_some():
    assert len(commands()) > 150


@pytest.mark.parametrize("module", sorted({module for _, module, _ in commands()}))
def test_what_is_named_is_there(module):
    found = app(module)
    if found is None:
        return
    command = get_command(found)
    several = getattr(command, "commands", None)
    wrong = []
    for file, _, said in {c for c in commands() if c[1] == module}:
        words = said.split()
        name = words[0] if words and re.fullmatch(r"[a-z][a-z-]+", words[0]) else None
        if several is None:
            wrong += [f"{file}: {module} has no command {name}"] if name else []
            known = command
        elif name is not None and name not in several:
            wrong.append(f"{file}: {module} has no command {name}")
            continue
        else:
            known = several.get(name, command)
        options = {flag for p in known.params for flag in (*p.opts, *p.secondary_opts)}
        given = {w.partition("=")[0] for w in words if w.startswith("--") and len(w) > 2}
        wrong += [f"{file}: {module} {name} has no {flag}" for flag in given - options - {"--help"}]
    assert not wrong, wrong
