"""What is wrong is said before anything heavy is imported, so before any model loads: all verbs."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys

import pytest

HEAVY = ("torch", "open_clip", "transformers", "diffusers", "timm", "lancedb", "gradio")
CASES = {
    "generate": [
        "fox --nope",
        "fox --size big",
        "fox --size 13x13",
        "fox --method nope",
        "fox --method particles --rho 1",
        "fox --strength nope",
        "fox --decoder nope",
        "fox --window 0.9,0.1",
        "fox --momentum 1",
        "fox --cutouts 257",
        "fox --cfg nan",
        "fox --clip nope",
        "fox --judge nope",
        "fox --model nope",
        "fox --device nope",
        "fox --dtype nope",
        "fox --reward nope",
        "fox --select nope:0.5",
        "fox --budget much",
        "fox --video fox.avi",
        "--like nowhere.png",
        "--like notes.txt",
        "fox --like .",
    ],
    "optimize": [
        "fox --nope",
        "fox --steps many",
        "fox --canvas nope",
        "fox --views nope",
        "fox --ema 2",
        "fox --init nowhere.png",
        "fox --init notes.txt",
        "fox --init notes.txt --mask .",
        "fox --image-prompt notes.txt",
        "fox --clip nope",
    ],
    "replay": ["", "fox.png --nope"],
    "plot": ["", "nowhere.png --nope"],
    "score": [
        "nowhere.png --text fox",
        "notes.txt --text fox --metric nope",
        "notes.txt --text fox --alpha black",
        "notes.txt --text fox --format xml",
        "notes.txt --text fox --clip nope",
        "notes.txt --text fox --device nope",
        "notes.txt --texts nowhere.txt",
        "--pairs nowhere.csv",
        "notes.txt",
    ],
    "rerank": ["nowhere.png --text fox", "notes.txt", "notes.txt --text fox --frames 0",
               "notes.txt --text fox --duplicate 2", "notes.txt --text fox --reward nope"],
    "classify": ["nowhere.png --labels fox,owl", "notes.txt --labels fox,owl --top 0"],
    "embed": ["nowhere.png --out a.npz", "notes.txt --out a.npz --batch 0", "notes.txt"],
    "index": ["nowhere", ". --engine dask", ". --alpha black", "s3://bucket/folder"],
    "search": ["fox --db nowhere", "fox -k 0", "fox --db .", "fox --diversity 2", "",
               "--image nowhere.png", "--image notes.txt", "fox --clip nope"],
    "duplicates": ["--db nowhere", "--duplicate 2"],
    "ui": ["--port many", "--nope", "--port -1", "--model nope"],
    "export": ["--out o", "--to onnx", "--to nope --out o", "--to hf --out o --clip nope"],
    "finetune": [
        "--nope",
        ". --out o --steps many",
        ". --out o --method nope",
        ". --out o --loss nope",
        ". --out o --epochs nan",
        ". --out o --batch 1",
        ". --out o --share 1",
        ". --out o --clip nope",
    ],
    "invert": [
        "--nope",
        "nowhere -w blorvek",
        "notes.txt --word 'two words'",
        "notes.txt -w blorvek --steps 0",
        "notes.txt -w blorvek --out notes.txt",
    ],
    "cache": ["nope"],
    "models": ["--nope"],
    "doctor": ["--nope"],
    "config": ["--nope"],
}
RUN = f"""
import json, os, sys
from typer.testing import CliRunner
from clipguide.cli.app import app
for line in sys.stdin.read().splitlines():
    if os.fork():
        os.wait()
        continue
    found = CliRunner().invoke(app, json.loads(line))
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([found.exit_code, found.stderr, heavy]), flush=True)
    os._exit(0)
"""


def test_all_verbs_are_here():
    from clipguide.cli.app import app

    named = {one.name or one.callback.__name__ for one in app.registered_commands}
    named |= {one.name for one in app.registered_groups}
    assert named == set(CASES)


def test_what_is_wrong_is_told_before_anything_heavy_is_imported(tmp_path):
    """Each in a fork of a process that has imported the commands alone."""
    (tmp_path / "notes.txt").write_text("no image")
    lines = [[verb, *shlex.split(case)] for verb, cases in CASES.items() for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines), done.stderr
    wrong = [
        (line, answer)
        for line, answer in zip(lines, answers)
        if answer[0] != 2 or not answer[1] or "Traceback" in answer[1] or answer[2]
    ]
    assert not wrong, wrong
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


@pytest.mark.bench
@pytest.mark.parametrize("line", ["index nowhere", "search fox --db nowhere", "score no --text a"])
def test_half_a_second_of_the_processor(tmp_path, line):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "clipguide", *line.split()], cwd=tmp_path, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.5
