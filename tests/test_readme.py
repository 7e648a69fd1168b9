"""The README's blocks run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import clipguide
from clipguide.cli.app import app

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
LINES = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("clipguide ")]


def test_every_block_is_of_a_kind_that_runs():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}


def test_first_lines():
    assert [line for line in LINES if line not in COMMANDS] == [
        'pip install -e . && clipguide generate "a red fox"',
        "pip install -e '.[test]' && pytest",
    ]


def test_the_first_example_is_under_six_lines():
    assert len([line for line in PYTHON[0].splitlines() if line]) < 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the samples in it, as a clone's: one command finds what another wrote."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "samples").symlink_to(README.parent / "samples")
    return folder


@pytest.fixture
def clone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLIPGUIDE_DB", str(folder / "db"))


@pytest.mark.parametrize("code", PYTHON)
def test_python(code, clone):
    exec(compile(code, str(README), "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line, clone):
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


def test_badges_and_contents_are_true():
    """Versions and licence are those of pyproject.toml; each heading is in the line of contents."""
    text = README.read_text(encoding="utf-8")
    project = (README.parent / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", project)
    assert f"[![Python {versions[0]} to {versions[-1]}]" in text
    assert f"python-{versions[0]}_to_{versions[-1]}-" in text
    licence = re.search(r'^license = "(.+)"', project, re.M)[1]
    assert f"[![Licence: {licence}]" in text and f"licence-{licence.replace('-', '--')}-" in text
    for heading in re.findall(r"^## (.+)$", text, re.M):
        assert f"[{heading}](#{heading.lower().replace(' ', '-')})" in text


def test_one_version():
    """The files that other programs read have the version of the package."""
    citation = (README.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == clipguide.__version__
    project = (README.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project and not re.search(r"^version = \"", project, re.M)
