"""Bad input to the commands: one sentence, exit code 2 or 1, nothing lost, no traceback."""

import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from clipguide.pipelines.text_to_image import TextToImage
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from clipguide import mini
from clipguide import recipe as recipes
from clipguide.cli import console
from clipguide.cli.app import app


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(*arguments, code=2):
    """The one line that a command answers with. It leaves no file behind."""
    before = sorted(Path().rglob("*"))
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("clipguide: "), result.stderr
    assert len(lines[0]) < 500 and lines[0].endswith((".", "?")), lines[0]
    assert [path for path in Path().rglob("*") if path.is_file() and path not in before] == []
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "empty"),
        (["  \t"], "empty"),
        (["fox", ""], "empty"),
        (["fox |"], "empty part"),
        (["fox:nan"], "finite"),
        (["fox:0"], "weight 0"),
        (["fox | fox:-1"], "cancel each other out"),
        (["blur:-1"], "add what to draw"),
        (["fox \udcff"], "UTF-8"),
        (["fox", "--clip-prompt", ""], "empty"),
        (["fox", "--negative", "\udcff"], "UTF-8"),
        (["fox", "--clip-prompt", "a:inf"], "finite"),
        (["fox", "--steps", "0"], "steps"),
        (["fox", "--steps", "-1"], "steps"),
        (["fox", "--steps", "1000000"], "steps"),
        (["fox", "--strength", "nan"], "strength"),
        (["fox", "--method", "shortcat"], "Did you mean shortcut"),
        (["fox", "--method", "particles", "--rho", "1"], "no option --rho"),
        (["fox", "--window", "0.5"], "--window takes two"),
        (["fox", "--window", "0.9,0.1"], "window"),
        (["fox", "--method", "best-of", "--best-of", "2"], "candidates of its own"),
        (["fox", "--strength", "inf"], "strength"),
        (["fox", "--strength", "-1"], "strength"),
        (["fox", "--cfg", "nan"], "--cfg"),
        (["fox", "--count", "10000"], "1000 images"),
        (["fox", "--count", "0"], "1000 images"),
        (["fox", "--count", "-3"], "1000 images"),
        (["fox", "--best-of", "0"], "--best-of"),
        (["fox", "--seed", "-1"], "seed"),
        (["fox", "--seed", str(2**63)], "seed"),
        (["fox", "--size", "7"], "7x7"),
        (["fox", "--size", "0"], "0x0"),
        (["fox", "--size", "999999"], "999999x999999"),
        (["fox", "--size", "-32"], "--size"),
        (["fox", "--size", "big"], "--size"),
        (["fox", "--preview", "-1"], "--preview"),
        (["fox", "--decoder", "lineal"], "Did you mean linear"),
        (["fox", "--decoder", "tiny"], "--tiny"),
        (["fox", "--decoder", "tiny", "--tiny", "."], "no config.json"),
        (["fox", "--video", "fox.avi"], ".gif, .webp or .mp4"),
        (["fox", "--video", "fox"], ".gif, .webp or .mp4"),
        (["fox", "--video", "fox.gif", "--count", "65"], "64 images"),
        (["fox", "--model", "minni"], "Did you mean mini"),
        (["fox", "--model", "no/such/folder"], "no/such/folder"),
        (["fox", "--model", "."], "not a diffusers folder"),
        (["fox", "--clip", "minni"], "Did you mean mini"),
        (["fox", "--clip", "ViT-B-23/openai"], "Did you mean ViT-B-"),
        (["fox", "--clip", "."], "is no folder of a CLIP"),
        (["fox", "--judge", "mini-jugde"], "Did you mean mini-judge"),
        (["fox", "--device", "tpu9"], "tpu9"),
        (["fox", "--device", "meta"], "meta"),
        (["fox", "--dtype", "float23"], "Did you mean float32"),
        (["fox", "--out", "fox.jpg"], "PNG"),
        (["fox", "--out", "{sed}.png"], "Did you mean seed"),
        (["fox", "owl", "--out", "fox.png"], "--out"),
        (["fox", "--count", "2", "--out", "fox.png"], "--out"),
    ],
)
def test_generate(tiny_mini, arguments, message):
    code = 1 if message == "no/such/folder" else 2
    assert message in refused("generate", *arguments, code=code)


@pytest.mark.parametrize(
    "prompt",
    [
        " ".join(["fox"] * 5000),
        "красная лиса",
        "赤い狐",
        "ثعلب أحمر",
        "🦊",
        "👩‍🚀",
        "fox\n\nowl",
        "a\x00b",
    ],
)
def test_odd_prompts_are_drawn(tiny_mini, prompt):
    arguments = ["generate", prompt, "--steps", "1", "--seed", "7", "--out", "a.png"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert recipes.read_png("a.png").prompt == prompt


def test_what_is_cut_is_said(tiny_mini):
    prompt = " ".join(["fox"] * 5000)
    arguments = ["generate", prompt, "--steps", "1", "--count", "2", "--exact", "--seed", "7"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert lines and all("is lost" in line and len(line) < 400 for line in lines)
    assert len(set(lines)) == len(lines)


def test_a_name_in_other_bytes(tiny_mini):
    name = os.fsdecode(b"\xff.png")
    result = CliRunner().invoke(app, ["generate", "fox", "--steps", "1", "--out", name])
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes.startswith(b"\xff.png") and os.listdir() == [name]


@pytest.mark.parametrize("model", ["guide", "judge", "generator"])
@pytest.mark.parametrize("damage", ["cut", "swapped", "gone"])
def test_damaged_weights(mini_folder, monkeypatch, tmp_path_factory, model, damage):
    home = tmp_path_factory.mktemp("damaged")
    shutil.copytree(mini_folder, home, dirs_exist_ok=True)
    monkeypatch.setattr(mini, "FOLDER", home)
    file = sorted((home / model).rglob("*.safetensors"))[0]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "swapped":
        other = "judge" if model == "guide" else "guide"
        shutil.copy(next((home / other).rglob("*.safetensors")), file)
    else:
        file.unlink()
    assert "reinstall clipguide" in refused("generate", "fox", code=1)


def test_damaged_weights_of_ones_own(tiny_mini, generator_folder, clip_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("own")
    for name, source in (("model", generator_folder), ("clip", clip_folder)):
        shutil.copytree(source, home / name)
        for file in (home / name).rglob("*.safetensors"):
            file.write_bytes(file.read_bytes()[:1000])
        message = refused("generate", "fox", "--clip", "mini", f"--{name}", home / name, code=1)
        assert "cannot be loaded" in message


def test_a_folder_that_is_not_there_is_made(tiny_mini):
    arguments = ["generate", "fox", "--steps", "1", "--seed", "7", "--out", "new/folder/"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert recipes.read_png("new/folder/fox-7.png")


@pytest.mark.parametrize("out", ["file/a.png", "/proc/a.png", "x" * 250 + ".png"])
def test_not_writable(tiny_mini, out):
    Path("file").write_text("no folder")
    assert "cannot be written" in refused("generate", "fox", "--out", out, code=1)


@pytest.mark.parametrize("name", ["file/a.gif", "/proc/a.webp", "x" * 250 + ".gif"])
def test_an_animation_that_cannot_be_written(tiny_mini, name):
    Path("file").write_text("no folder")
    assert "cannot be written" in refused("generate", "fox", "--video", name)


def test_an_animation_without_what_writes_it(tiny_mini, monkeypatch):
    for module in ("av", "imageio_ffmpeg"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install av" in refused("generate", "fox", "--video", "a.mp4")


def test_an_animation_is_not_overwritten(tiny_mini):
    Path("a.gif").write_text("mine")
    assert "--force" in refused("generate", "fox", "--out", "a.png", "--video", "a.gif")
    assert Path("a.gif").read_text() == "mine"
    arguments = ["generate", "fox", "--steps", "1", "--video", "a.gif", "--force"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert Image.open("a.gif").format == "GIF"


@pytest.mark.parametrize("taken", ["a.png", "a-grid.png", "a-compare.png", "a-preview.png"])
def test_nothing_is_overwritten(tiny_mini, taken):
    Path(taken).write_text("mine")
    sheets = ["--grid", "--compare", "--preview", "1"]
    assert "--force" in refused("generate", "fox", "--out", "a.png", *sheets)
    assert Path(taken).read_text() == "mine"


def test_a_full_disk(tiny_mini):
    """A limit on the size of files stands in for it: writing fails in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        message = refused("generate", "fox", "--steps", "1", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free some space" in message


def test_no_memory(tiny_mini, monkeypatch):
    """The allocator's own error, from where images are drawn."""
    monkeypatch.setattr(TextToImage, "iterate", lambda *_, **__: torch.empty(2**50))
    assert "not enough memory" in refused("generate", "fox", code=1)


DRAWN = {}  # one file serves all tests


@pytest.fixture
def picture(tiny_mini, tmp_path):
    if not DRAWN:
        arguments = ["generate", "fox", "--steps", "1", "--out", "good.png"]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        DRAWN["good.png"] = Path("good.png").read_bytes()
    Path("good.png").write_bytes(DRAWN["good.png"])
    return Path("good.png")


def with_chunk(text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("clipguide", text)
    Image.new("RGB", (32, 32)).save("bad.png", pnginfo=info)
    return "bad.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 10**15}, "steps"),
        ({"width": 10**9}, "does not draw"),
        ({"width": 7}, "does not draw"),
        ({"cfg": "a"}, "cfg"),
        ({"strength": -1}, "strength"),
        ({"prompt": ""}, "empty"),
        ({"guide": "a:nan"}, "finite"),
        ({"seed": 10**30}, "seed"),
        ({"batch_seeds": [1] * 10**5}, "batch_seeds"),
        ({"model": "../../evil"}, "--trust"),
        ({"clip": "https://evil"}, "--trust"),
        ({"judge": "evil" * 10**4}, "--trust"),
        ({"dtype": "__import__('os')"}, "dtype"),
        ({"device": "evil"}, "evil"),
        ({"version": 99}, "format 99"),
        ({"surplus": 1}, "surplus"),
        ({"method": "best-of", "options": {"each": "1"}}, "is a method"),
        ({"options": {"inner": "2.5"}}, "a whole number"),
        ({"options": {"travel": "1e9"}}, "a whole number"),
    ],
)
def test_replay_of_a_hostile_recipe(picture, changes, message):
    values = {**json.loads(recipes.read_png(picture).to_json()), **changes}
    assert message in refused("replay", with_chunk(json.dumps(values)))


def test_replay_without_recipe(picture):
    Image.new("RGB", (32, 32)).save("plain.png")
    Image.new("RGB", (32, 32)).save("plain.jpg")
    Path("text.png").write_text("no image")
    Path("cut.png").write_bytes(picture.read_bytes()[:-100])
    for name in ("plain.png", "plain.jpg", "text.png", "cut.png", "missing.png", "."):
        assert name in refused("replay", name)
    for text in ("", "{", "[" * 50_000, "1" * 10_000):
        assert "recipe" in refused("replay", with_chunk(text))


def test_replay_overwrites_nothing(picture):
    assert "--force" in refused("replay", picture, "--out", picture)


def test_replay_of_an_edited_picture(picture):
    array = np.array(Image.open(picture))
    array[0, 0] ^= 1
    recipes.save_png(Image.fromarray(array), recipes.read_png(picture), "edited.png")
    result = CliRunner().invoke(app, ["replay", "edited.png"])
    assert result.exit_code == 1 and "3 of the 8-bit values differ, by up to 1" in result.stdout


@pytest.mark.parametrize("model", ["guide", "judge", "generator"])
def test_models_without_a_model(mini_folder, monkeypatch, tmp_path_factory, model):
    home = tmp_path_factory.mktemp("less")
    shutil.copytree(mini_folder, home, dirs_exist_ok=True)
    shutil.rmtree(home / model)
    monkeypatch.setattr(mini, "FOLDER", home)
    monkeypatch.setattr(mini, "MODELS", ("guide", "judge", "generator"))
    assert model in refused("models", code=1)


def test_an_unknown_command_or_option():
    for arguments in (["genrate", "fox"], ["generate", "fox", "--sead", "1"], ["generate"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and "Traceback" not in result.output
    assert os.listdir() == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("more", [["--format", "json"], ["--help"]])
def test_what_is_printed_cannot_be_written(clip_folder, tmp_path, more):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "clipguide", "score", str(tmp_path), "-t", "a fox"]
    command += ["--clip", str(clip_folder), *more]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "clipguide: The output cannot be written: No space left on device.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "a.png", "-t", "a", "--metric", "cos"], "'cos' is not one of 'cosine',"),
        (["rerank", "a.png", "-t", "a", "--top", "0"], "'--top' / '-k': it must be at least 1"),
        (["rerank", "a.png", "-t", "a", "-k", "a"], "'--top' / '-k': it must be a whole number."),
        (["rerank", "a.png", "-t", "a", "--diversity", "2"], "it must be at most 1"),
        (["rerank", "a.png", "-t", "a", "--diversity", "x"], "it must be a number."),
    ],
)
def test_wrong_values_in_our_own_words(arguments, said):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and said in done.stderr, done.stderr
    assert "Input should" not in done.stderr and "Value error" not in done.stderr


def test_a_head_that_is_none(clip_folder, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("what I think of them")
    words = ["rerank", str(tmp_path / "a.png"), "--clip", str(clip_folder), "--aesthetic"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "notes.txt")])
    said = f"clipguide: {tmp_path / 'notes.txt'} holds no weights: name a .safetensors file."
    assert done.exit_code == 2 and done.stderr.strip() == said
    torch.save({"weight": torch.ones(1, 24), "bias": torch.ones(1)}, tmp_path / "head.pth")
    done = CliRunner().invoke(app, [*words, str(tmp_path / "head.pth")])
    assert done.exit_code == 2 and "is a pickle, not safetensors: give --trust-p" in done.stderr


def test_the_command_line_speaks_of_options():
    for of_python, of_options in {
        "give trust_pickle=True (--trust-pickle) if": "give --trust-pickle if",
        "give trust_pickle=True if": "give --trust-pickle if",
        "give --force (overwrite=True) or": "give --force or",
        "(none=True, --none).": "(--none).",
        "allow them by --megapixels 3 (megapixels=).": "allow them by --megapixels 3.",
        "or --retain none (retain=None).": "or --retain none.",
        "a path of (one) a=b.png": "a path of (one) a=b.png",
    }.items():
        assert console.options_for_names(of_python) == of_options


def test_no_message_names_what_the_command_line_does_not_know():
    """Of each name in Python in a message there is an option beside it, or it becomes one."""
    known = set()
    for command in typer.main.get_command(app).commands.values():
        known |= {option for one in command.params for option in getattr(one, "opts", ())}
    root, found = Path(console.__file__).parents[1], set()
    for file in root.rglob("*.py"):
        for text in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found |= {m for m in re.findall(r"\b([a-z_]+)=True\b", text.value)}
    docs = {"requires_grad", "weights_only", "strict", "antialias", "truncation"}  # code in readmes
    names = {f"--{name.replace('_', '-')}" for name in found - docs}
    assert names <= known | {"--overwrite"}, names - known
