"""The package's modules import each other in no circle, whether at the top or inside a function."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOMES = {"clipguide": ROOT / "clipguide", "clipguide.pipelines": ROOT / "pipelines"}
LAZY = {"clipguide"}  # `clipguide/__init__.py` names everything, and imports it when it is asked


def modules() -> dict[str, Path]:
    """Dotted name -> file, packages by their __init__."""
    found = {}
    for home, folder in HOMES.items():
        for file in folder.rglob("*.py"):
            parts = [home, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


def imported(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, but for those that only a type checker
    sees."""
    tree = ast.parse(file.read_text())
    typing = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1]
            home = ".".join(base) if node.level else ""
            home = ".".join(part for part in (home, node.module or "") if part)
            found |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    within = {one for one in found if one in known and one not in LAZY and one != name}
    # `from .x import y` where y is a module of the package x needs y, not x's __init__ whole
    packages = {one for one in within if known[one].name == "__init__.py"}
    return {
        one
        for one in within
        if one not in packages or not any(other.startswith(f"{one}.") for other in within)
    }


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(name, file, known) for name, file in known.items() if name not in LAZY}


def test_there_is_no_circle():
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail("These import each other in a circle: " + " -> ".join(error.args[1]))
    assert len(order) > 150


def test_a_circle_is_seen():
    """The test itself: a circle through a function's import is one too."""
    circle = {**graph(), "clipguide.errors": {"clipguide.guidance.steer"}}
    with pytest.raises(CycleError):
        TopologicalSorter(circle).prepare()


def test_methods_import_what_lies_below_them():
    """One file a method: the contract, levels and the shared arithmetic, no session and no tap."""
    shared = ("descent", "generators", "interpolants", "resampling", "stochastic", "travel")
    shared = (*shared, "noise_levels", "schedulers", "whiteness", "conditioning", "whole_runs")
    below = {"contract", "run", "levels", "precision", "pipe_parts", *shared}
    for name, found in graph().items():
        home, _, method = name.rpartition(".")
        if home != "clipguide.guidance.methods" or method == "":
            continue
        guidance = {one.removeprefix("clipguide.guidance.") for one in found if ".guidance." in one}
        assert guidance <= below | {"methods.shortcut"}, name


def test_only_steer_knows_them_all():
    top = {f"clipguide.guidance.{name}" for name in ("steer", "steering")}
    for name, found in graph().items():
        if name.startswith("clipguide.guidance.") and name not in top:
            assert not {*top, "clipguide.guidance"} & found, name


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def uses(tree: ast.AST) -> set[str]:
    """The names behind `self.` and `super().` that start with an underscore."""
    owners = ("self", "super()")
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and private(node.attr)
        if ast.unparse(node.value) in owners
    } | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_no_module_takes_another_s_underscore():
    """Neither by import, nor as an attribute, nor by a class that derives from another file's."""
    trees = {name: ast.parse(file.read_text()) for name, file in modules().items()}
    classes = {
        (name, node.name): node
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    wrong = []
    for name, tree in trees.items():
        ours: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.level or "clipguide" in node.module):
                ours |= {alias.asname or alias.name for alias in node.names}
                wrong += [(name, alias.name) for alias in node.names if private(alias.name)]
        wrong += [
            (name, ast.unparse(node))
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and private(node.attr)
            if isinstance(node.value, ast.Name) and node.value.id in ours
        ]
        for node in tree.body if name != "clipguide" else []:
            for base in node.bases if isinstance(node, ast.ClassDef) else []:
                wrong += [
                    (name, node.name, other)
                    for (home, known), parent in classes.items()
                    if home != name and known == ast.unparse(base).rpartition(".")[2]
                    for other in uses(parent) & uses(node)
                    if private(other)
                ]
    assert not wrong, wrong
