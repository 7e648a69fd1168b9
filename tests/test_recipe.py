import concurrent.futures
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from clipguide import recipe as recipes
from clipguide.errors import ClipguideError, UsageError
from clipguide.recipe import Recipe, from_json, read_png, save_png

RECIPE = Recipe(
    command="generate",
    prompt="a red fox",
    guide="a red fox | 赤:0.5",
    negative="blur",
    seed=7,
    steps=25,
    method="shortcut",
    options={"every": "2"},
    strength=0.1,
    cfg=4.0,
    width=128,
    height=96,
    scheduler="DDIMScheduler",
    best_of=2,
    model="mini",
    model_fingerprint="ab" * 32,
    clip="mini",
    clip_fingerprint="cd" * 32,
    judge="mini-judge",
    judge_fingerprint="ef" * 32,
    device="cpu",
    dtype="float32",
    threads=2,
    libraries={"clipguide": "0.1.0", "torch": "2.6.0"},
    batch_position=1,
    batch_seeds=(6, 7),
    guide_score=0.3,
    judge_score=0.25,
)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))


def altered(**changes):
    return json.dumps({**json.loads(RECIPE.to_json()), **changes})


def test_json_round_trip():
    assert from_json(RECIPE.to_json()) == RECIPE


def test_png_round_trip(tmp_path):
    save_png(PICTURE, RECIPE, tmp_path / "new" / "folder" / "a.png")
    assert read_png(tmp_path / "new" / "folder" / "a.png") == RECIPE
    with Image.open(tmp_path / "new" / "folder" / "a.png") as image:
        assert (np.asarray(image) == np.asarray(PICTURE)).all()
        assert image.text["parameters"] == (
            "a red fox\n"
            "Negative prompt: blur\n"
            "Steps: 25, Sampler: DDIMScheduler, CFG scale: 4, Seed: 7, Size: 128x96, "
            "Model hash: ababababab, Model: mini, Version: clipguide 0.1.0"
        )
    assert os.listdir(tmp_path / "new" / "folder") == ["a.png"]


def test_a_recipe_from_before_there_was_a_choice_of_decoders():
    values = json.loads(RECIPE.to_json())
    for name in ("decoder", "tiny", "tiny_fingerprint"):
        del values[name]
    assert from_json(json.dumps(values)) == RECIPE and RECIPE.decoder == "vae"
    tiny = dataclasses.replace(RECIPE, decoder="tiny", tiny="a/b", tiny_fingerprint="01" * 32)
    assert from_json(tiny.to_json()) == tiny
    assert "decoder: vae then, tiny now" in recipes.differences(RECIPE, tiny)


def test_a_recipe_without_judge():
    unjudged = dataclasses.replace(RECIPE, judge="", judge_fingerprint="", judge_score=None)
    assert from_json(unjudged.to_json()) == unjudged


def test_differences():
    now = dataclasses.replace(
        RECIPE, guide_score=0.1, threads=4, libraries={"torch": "2.7.0", "timm": "1.0"}
    )
    assert recipes.differences(RECIPE, RECIPE) == []
    assert recipes.differences(RECIPE, now) == [
        "threads: 2 then, 4 now",
        "clipguide: 0.1.0 then, absent now",
        "torch: 2.6.0 then, 2.7.0 now",
        "timm: absent then, 1.0 now",
    ]


def test_parameters_without_negative():
    plain = dataclasses.replace(RECIPE, negative="")
    assert plain.parameters().splitlines()[1].startswith("Steps: 25")


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        save_png(PICTURE, RECIPE, path)
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["a.png"]
    save_png(PICTURE, RECIPE, path, overwrite=True)
    assert read_png(path) == RECIPE


def test_nothing_is_overwritten_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    save_png(PICTURE, RECIPE, tmp_path / "a.png")
    with pytest.raises(UsageError, match="--force"):
        save_png(PICTURE, RECIPE, tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_of_two_writers_one_wins(tmp_path):
    outcomes = []

    def write():
        try:
            save_png(PICTURE, RECIPE, tmp_path / "a.png")
            outcomes.append("written")
        except ClipguideError:
            outcomes.append("refused")

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "written"] and os.listdir(tmp_path) == ["a.png"]


def test_one_picture_saved_by_many_threads(tmp_path):
    prompts = [str(k) for k in range(200)]

    def write(prompt):
        save_png(PICTURE, dataclasses.replace(RECIPE, prompt=prompt), tmp_path / f"{prompt}.png")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, prompts))
    assert [read_png(tmp_path / f"{p}.png").prompt for p in prompts] == prompts


WRITER = """
import pickle, sys
from clipguide.recipe import save_png
image, recipe = pickle.load(sys.stdin.buffer)
while True:
    save_png(image, recipe, "a.png", overwrite=True)
    print(flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    for written in range(1, 60, 2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        writer.stdin.write(pickle.dumps((PICTURE, RECIPE)))
        writer.stdin.close()
        for _ in range(written):
            writer.stdout.readline()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert read_png(tmp_path / "a.png") == RECIPE
        with Image.open(tmp_path / "a.png") as image:
            assert (np.asarray(image) == np.asarray(PICTURE)).all()


def test_a_model_named_in_other_bytes(tmp_path):
    odd = dataclasses.replace(RECIPE, model="model\udcff")
    save_png(PICTURE, odd, tmp_path / "a.png")
    assert read_png(tmp_path / "a.png").model == "model?"


@pytest.mark.parametrize("path", ["file/a.png", "file/below/a.png", "x" * 250 + ".png"])
def test_unwritable(tmp_path, path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ClipguideError, match="cannot be written"):
        recipes.prepare(tmp_path / path)
    with pytest.raises(ClipguideError, match="cannot be written"):
        save_png(PICTURE, RECIPE, tmp_path / path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        '{"version": 1}',
        altered(version=1),
        altered(version=3),
        altered(version="1" * 10_000),
        altered(extra=1),
        altered(seed=-1),
        altered(seed=True),
        altered(seed=1.5),
        altered(seed=2**63),
        altered(steps="25"),
        altered(strength=None),
        altered(strength=float("nan")),
        altered(cfg=[1]),
        altered(prompt=["a"]),
        altered(prompt="x" * 300_000),
        altered(batch_seeds=[]),
        altered(batch_seeds="67"),
        altered(batch_seeds=[1, -1]),
        altered(batch_seeds=list(range(20_000))),
        altered(batch_position=0),
        altered(batch_position=2),
        altered(cfg=10**400),
        altered(libraries={"torch": 2}),
        altered(libraries=[]),
        altered(options={"every": 2}),
        altered(decoder=1),
        altered(tiny=None),
        altered(method=3),
        "1" * 10_000,
        " " * 2_000_000,
    ],
)
def test_hostile_json(text):
    with pytest.raises(UsageError) as caught:
        from_json(text)
    assert len(str(caught.value)) < 400


def png_with(path, *chunks):
    info = PngImagePlugin.PngInfo()
    for name, text, compressed in chunks:
        info.add_itxt(name, text, zip=compressed)
    PICTURE.save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no recipe"),
        ([("parameters", "a fox\nSteps: 3", False)], "no recipe"),
        ([("clipguide", "{", False)], "not valid JSON"),
        ([("clipguide", " " * 50_000_000, True)], "cannot|can be read"),
    ],
)
def test_hostile_png(tmp_path, chunks, message):
    with pytest.raises(UsageError, match=message):
        read_png(png_with(tmp_path / "a.png", *chunks))


TRACE = [{"step": 0, "noise": 1.0}, {"step": 1, "noise": 0.5, "loss": 0.1, "guide": 0.2}]


def test_trace_round_trip(tmp_path):
    save_png(PICTURE, RECIPE, tmp_path / "a.png", trace=TRACE)
    assert recipes.read_trace(tmp_path / "a.png") == TRACE
    assert read_png(tmp_path / "a.png") == RECIPE


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "{}",
        "[1]",
        '[{"step": 1}]',
        '[{"step": 1, "noise": "1"}]',
        '[{"step": 1, "noise": NaN}]',
        '[{"step": 1, "noise": 1, "code": 1}]',
        "[" * 100_000,
        " " * 2_000_000,
    ],
)
def test_hostile_trace(tmp_path, text):
    chunks = [] if text is None else [("clipguide-trace", text, True)]
    with pytest.raises(UsageError, match="trace"):
        recipes.read_trace(png_with(tmp_path / "a.png", *chunks))


def test_not_a_png(tmp_path):
    PICTURE.save(tmp_path / "a.jpg")
    save_png(PICTURE, RECIPE, tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    for name in ("a.jpg", "cut.png", "missing.png", "."):
        with pytest.raises(UsageError):
            read_png(tmp_path / name)
