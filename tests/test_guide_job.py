"""--for-guiding from a folder to a folder: it trains, goes on, tells its figure, and is a CLIP."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from coloured import COLOURS, draw, write
from conftest import IMAGE_SIZE
from test_finetune_run import same_state
from typer.testing import CliRunner

from clipguide import load_clip
from clipguide.cli.app import app
from clipguide.errors import UsageError
from clipguide.finetune.guide_job import GuideJob, prepare_guide
from clipguide.finetune.guiding import GuidingConfig
from clipguide.finetune.run import copy_state


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pictures"), 6)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    for number in range(8):
        draw("#d02020", number).save(folder / f"{number}.png")
    return folder


def job_of(data, clip_folder, judge_folder, folder=None, steps=4, retain=None, **settings):
    config = GuidingConfig(steps=steps, epsilon=(0.1, 0.3), warmup=1, **settings)
    rest = {"batch": 6, "folder": folder, "retain": retain}
    return prepare_guide(data, clip=clip_folder, judge=str(judge_folder), config=config, **rest)


def test_from_a_folder_to_a_guide(pictures, clip_folder, judge_folder, tmp_path):
    job = job_of(pictures, clip_folder, judge_folder, retain=pictures)
    before = copy_state(job.parts.model)
    assert [step.index for step in job.run()] == [1, 2, 3, 4]
    after = copy_state(job.parts.model)
    moved = {n.split(".")[0] for n in after if not torch.equal(after[n], before[n])}
    assert moved == {"visual", "logit_scale"}
    report = job.report(drawn=2)
    assert report.after.concepts == tuple(sorted(COLOURS))[:2] and report.after.among > 1740
    clip = job.save(report, tmp_path / "guide")
    assert load_clip(tmp_path / "guide").fingerprint == clip.fingerprint != job.before.fingerprint
    card = (tmp_path / "guide" / "README.md").read_text()
    assert report.markdown() in card and "4 steps" in card
    assert (tmp_path / "guide" / "guide-after.png").exists()


def test_pictures_without_names(flat, clip_folder, judge_folder):
    with pytest.raises(UsageError, match="Nothing says what the 8 images"):
        job_of(flat, clip_folder, judge_folder)
    job = job_of(flat, clip_folder, judge_folder, method="fare")
    assert len(list(job.run())) == 4
    assert job.data.classes == [] and job.report(drawn=1).clean is None


def test_captions_are_no_classes(flat, tmp_path, clip_folder, judge_folder):
    lines = [json.dumps({"image": str(p), "caption": f"disc {p.stem}"}) for p in flat.iterdir()]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="TeCoA needs classes.*--against fare does without"):
        job_of(tmp_path / "captions.jsonl", clip_folder, judge_folder)


def test_it_goes_on_with_the_same_bits(pictures, clip_folder, judge_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("clipguide.finetune.guide_job.SECONDS", 0.0)
    whole = job_of(pictures, clip_folder, judge_folder)
    losses = [step.loss for step in whole.run()]
    run = job_of(pictures, clip_folder, judge_folder, tmp_path / "run").run()
    first = [next(run).loss for _ in range(3)]
    run.close()
    again = job_of(pictures, clip_folder, judge_folder, tmp_path / "run")
    rest = [step.loss for step in again.run()]
    assert len(rest) == 1 and first + rest == losses
    same_state(copy_state(again.parts.model), copy_state(whole.parts.model))
    with pytest.raises(UsageError, match="steps was 4, not 5"):
        list(job_of(pictures, clip_folder, judge_folder, tmp_path / "run", steps=5).run())


def test_on_the_command_line(pictures, clip_folder, judge_folder, tmp_path, monkeypatch):
    few = functools.partialmethod(GuideJob.report, drawn=1)
    monkeypatch.setattr(GuideJob, "report", few)
    out = tmp_path / "guide"
    words = ["finetune", pictures, "-o", out, "--for-guiding", "--steps", 2, "--batch", 6]
    words += ["--clip", clip_folder, "--judge", judge_folder, "--retain", "held-out"]
    words += ["--epsilon", "0.1,0.2"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "top-5 of 174" in done.stdout and "clean top-1" in done.stdout
    assert load_clip(out).image_size == IMAGE_SIZE
    for bad, said in (("0.1", "--epsilon is two numbers"), ("3,1", "epsilon is the least and")):
        wrong = [*words[:-1], bad, "--force"]
        done = CliRunner().invoke(app, [str(word) for word in wrong])
        assert done.exit_code == 2 and said in done.stderr
