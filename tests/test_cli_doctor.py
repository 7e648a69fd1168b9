"""clipguide doctor: a report that is true, and an exit code that says whether all is well."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch
from typer.testing import CliRunner

from clipguide import mini
from clipguide.cli import doctor
from clipguide.cli.app import app


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_report_as_json():
    result = run("--no-draw", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["packages"]["torch"] == metadata.version("torch")
    cpu = report["devices"][0]
    assert cpu["threads"] == torch.get_num_threads() and 0 < cpu["free"] <= cpu["total"]
    assert len(report["devices"]) >= 1 + torch.cuda.device_count()
    assert report["models"] == dict.fromkeys(mini.MODELS, "")
    assert {"finetune", "search", "export", "ui"} <= set(report["extras"])
    assert not {"test", "train", "bench"} & set(report["extras"])


def test_extras_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda _: [
            "torch>=2",
            "numpy>=1 ; extra == 'here'",
            "no-such-package>=1 ; python_version > '3' and extra == \"away\"",
            "pytest ; extra == 'test'",
        ],
    )
    assert doctor.extras() == {"here": [], "away": ["no-such-package"]}
    report = json.loads(run("--no-draw", "--json").stdout)
    assert "missing no-such-package: pip install 'clipguide[away]'" in "\n".join(
        doctor.lines(report)
    )


def test_draws_one_image():
    result = run()
    assert result.exit_code == 0, result.stderr
    assert "drawn in" in result.stdout and "all whole" in result.stdout
    guide = float(result.stdout.split(", guide ")[1].split(",")[0])
    assert -1 < guide < 1


def test_a_damaged_model_is_told_and_exits_1(monkeypatch, tmp_path):
    for name in mini.MODELS:
        (tmp_path / name).mkdir()
    (tmp_path / "SHA256SUMS").write_text((mini.FOLDER / "SHA256SUMS").read_text())
    monkeypatch.setattr(mini, "FOLDER", tmp_path)
    result = run("--no-draw")
    assert result.exit_code == 1
    assert "reinstall clipguide" in result.stdout and "all whole" not in result.stdout


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), MemoryError("none left")])
def test_what_fails_is_in_the_report(monkeypatch, error):
    from clipguide.pipelines import text_to_image

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(text_to_image, "TextToImage", broken)
    result = run()
    assert result.exit_code == 1
    assert f"drawing failed: {type(error).__name__}: {error}" in result.stdout
