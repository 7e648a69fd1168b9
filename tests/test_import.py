"""What importing does: next to nothing."""

import os
import subprocess
import sys

import pytest

import clipguide

HEAVY = ("torch", "numpy", "PIL", "diffusers", "transformers", "open_clip", "timm", "rich")


def python(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


@pytest.mark.parametrize("module", ["clipguide", "clipguide.cli.app"])
def test_nothing_heavy_is_imported(module):
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(HEAVY).intersection(loaded)


def test_every_public_name_is_there():
    for name in clipguide.__all__:
        assert getattr(clipguide, name) is not None
    assert set(clipguide.__all__) <= set(dir(clipguide))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'stear'"):
        clipguide.stear  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_help_answers_in_a_blink(arguments):
    code = f"import sys; sys.argv[1:] = {arguments}; from clipguide.cli.app import main; main()"
    seconds = []
    while len(seconds) < 20 and min(seconds, default=1.0) > 0.3:  # a busy core is slower, too
        before = os.times()
        python(code)
        after = os.times()  # of the processor, for other programs may be using it as well
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) <= 0.3


def test_what_help_imports():
    """Typer and what it needs, for every command; pydantic alone would take a third of the time."""
    code = """
import contextlib, io, sys
from clipguide.cli.app import app
for verb in ("", *(one.name or one.callback.__name__ for one in app.registered_commands)):
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            app([verb, "--help"] if verb else ["--help"])
        except SystemExit as end:
            assert end.code == 0
    assert "Usage" in told.getvalue()
print(*{name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))
"""
    ours = {"clipguide", "__main__", "typer", "annotated_types", "typing_extensions", "tomli"}
    ours |= {"typing_inspection", "shellingham", "annotated_doc", "colorama"}
    loaded = {name for name in python(code).split() if not name.startswith("__editable__")}
    assert loaded - ours <= {"_distutils_hack", "_virtualenv", "sitecustomize", "zz"}, loaded
