"""A test needs no more packages than the README's command installs for it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABSENT = """
import sys
for name in {absent}:
    sys.modules[name] = None
for name in {wanted}:
    __import__(name)
"""


def normal(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def of_other_extras() -> set[str]:
    """The modules of the packages that `train` and `bench` install and `test` does not.

    Where such a package is not installed, its module has the package's name.
    """
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {k: {normal(x) for x in v} for k, v in project["optional-dependencies"].items()}
    packages = (extras["train"] | extras["bench"]) - extras["test"]
    here = {
        module
        for module, owners in packages_distributions().items()
        if packages & {normal(owner) for owner in owners}
    }
    return here | {name.replace("-", "_") for name in packages}


def own_imports(file: Path) -> set[str]:
    """What a file imports of `training` and `benchmarks` wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {
        name
        for name in found
        if name.split(".")[0] in ("training", "benchmarks")
        and (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
    }


def imports(wanted: set[str], absent: set[str]) -> subprocess.CompletedProcess:
    script = ABSENT.format(absent=sorted(absent), wanted=sorted(wanted))
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_what_tests_import_needs_no_other_extra():
    """Else a test passes where the models are trained, and CI cannot even collect it."""
    absent = of_other_extras()
    assert {"resvg_py", "usearch"} <= absent
    wanted = set.union(*(own_imports(file) for file in (ROOT / "tests").glob("*.py")))
    assert "training.evaluate.generator" in wanted
    done = imports(wanted, absent)
    assert done.returncode == 0, done.stderr


def test_an_import_of_another_extra_is_seen():
    """The test itself: the builder of the data needs resvg."""
    done = imports({"training.data.build"}, of_other_extras())
    assert done.returncode == 1 and "resvg_py" in done.stderr
