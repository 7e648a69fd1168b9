import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hf_folder import write_hf_clip
from PIL import Image
from typer.testing import CliRunner

from clipguide import load_clip
from clipguide import recipe as recipes
from clipguide.cli import files, naming, watching
from clipguide.cli.app import app
from clipguide.errors import UsageError

FAST = ["--steps", "2"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def pixels(path):
    return np.asarray(Image.open(path))


# Names of files


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red fox!", "a-red-fox"),
        ("a red fox | oil painting:0.5 | blur:-1", "a-red-fox-oil-painting"),
        ("../../etc/passwd", "etc-passwd"),
        ("🦊", "fox-face"),
        ("赤い狐", "赤い狐"),
        ("हिन्दी", "हिन्दी"),
        ("...", "picture"),
        ("x" * 500, "x" * 100),
        ("狐" * 500, "狐" * 33),
    ],
)
def test_slug(prompt, name):
    assert naming.slug(prompt) == name


@pytest.mark.parametrize(
    ("out", "names"),
    [
        (None, ["a-fox-7.png", "a-fox-8.png", "an-owl-7.png", "an-owl-8.png"]),
        ("new/", [f"new/a-fox-{i}.png" for i in (7, 8)] + [f"new/an-owl-{i}.png" for i in (7, 8)]),
        ("new", [f"new/a-fox-{i}.png" for i in (7, 8)] + [f"new/an-owl-{i}.png" for i in (7, 8)]),
        ("{index:02}.png", ["00.png", "01.png", "02.png", "03.png"]),
        ("{prompt}/{seed}.png", ["a-fox/7.png", "a-fox/8.png", "an-owl/7.png", "an-owl/8.png"]),
    ],
)
def test_plan(out, names):
    assert naming.plan(out, prompts=["a fox", "an owl"], count=2, seed=7) == [*map(Path, names)]


@pytest.mark.parametrize(
    "out",
    [
        "one.png",
        "{seed}.png",
        "a.jpg",
        "{seed}.jpg",
        "{sed}.png",
        "{seed",
        "{}.png",
        "{seed.x}.png",
    ],
)
def test_plan_refuses(out):
    with pytest.raises(UsageError):
        naming.plan(out, prompts=["a fox", "an owl"], count=2, seed=7)


# generate


def test_generate(tiny_mini):
    result = invoke("generate", "a red fox", "--seed", 7, *FAST)
    assert result.stdout.startswith("a-red-fox-7.png  guide ") and "judge" in result.stdout
    recipe = recipes.read_png("a-red-fox-7.png")
    assert (recipe.prompt, recipe.guide, recipe.seed, recipe.steps) == ("a red fox",) * 2 + (7, 2)
    assert recipe.model == "mini" and os.listdir() == ["a-red-fox-7.png"]


def test_every_option_reaches_the_recipe(tiny_mini):
    options = {
        "--clip-prompt": "a fox",
        "--negative": "blur",
        "--best-of": 2,
        "--strength": 0.3,
        "--steps": 3,
        "--seed": 11,
        "--cfg": 2.5,
        "--cfg-window": "0.2,0.9",
        "--size": "32x48",
        "--clip": "mini-judge",
        "--judge": "mini",
        "--dtype": "bfloat16",
        "--device": "cpu",
    }
    flat = [item for pair in options.items() for item in pair]
    invoke("generate", "a red fox", *flat, "--out", "a.png")
    recipe = recipes.read_png("a.png")
    assert recipe.seed in (11, 1_000_011)
    assert (recipe.guide, recipe.negative, recipe.best_of) == ("a fox", "blur", 2)
    assert (recipe.strength, recipe.steps, recipe.cfg) == (0.3, 3, 2.5)
    assert recipe.cfg_window == "0.2,0.9"
    assert (recipe.width, recipe.height) == (32, 48) == Image.open("a.png").size
    assert (recipe.clip, recipe.judge) == ("mini-judge", "mini")
    assert (recipe.device, recipe.dtype) == ("cpu", "bfloat16")


def test_the_defaults_that_help_names_are_the_librarys():
    from clipguide.pipelines.generation import Generation

    text = " ".join(invoke("generate", "--help").stdout.split())
    defaults = {field.name: field.default for field in dataclasses.fields(Generation)}
    for name in ("best_of", "method", "steps"):
        assert defaults[name] is None  # `Generation.usual` chooses
    for name in ("cfg", "count"):
        option = text[text.index("--" + name.replace("_", "-")) :]
        option = option[: option.index("]")]
        assert option.endswith(f"[default: {defaults[name]}"), option


def test_every_option_of_every_method_has_a_flag_that_names_its_default():
    from clipguide.guidance import METHODS

    text = invoke("generate", "--help").stdout
    rows = text[text.index("Arguments") :]  # what stands before them names options too
    for name, method in METHODS.items():
        assert f"{name}:" in text
        made_in_python = ("each", "sketch_adapter")  # a method, and what was loaded into a pipeline
        fields = [f for f in dataclasses.fields(method) if f.name not in made_in_python]
        for field in fields:
            flag = f"--{field.name.replace('_', '-')}"
            flag = {"--steps": "--lookahead-steps"}.get(flag, flag)
            option = rows[re.search(rf"^\W*{flag}\b", rows, re.MULTILINE).start() :]
            option = " ".join(option.split())
            defaults = option[option.index("[default: ") : option.index("]")]
            values = field.default if isinstance(field.default, tuple) else [field.default]
            for value in filter(lambda value: value is not None, values):
                shown = f"{value:g}" if isinstance(value, float) else str(value)
                shown = field.name if value is True else shown
                assert shown in re.findall(r"[\w.]+", defaults), (flag, value)


def test_flags_of_a_method(tiny_mini):
    flags = ["--method", "particles", "--number", 2, "--sharpness", 50, "--every", 1]
    invoke(
        "generate", "a red fox", "--seed", 1, *FAST, *flags, "--window", "0.2,0.9", "--out", "a.png"
    )
    recipe = recipes.read_png("a.png")
    assert (recipe.method, recipe.best_of) == ("particles", 2)
    wanted = {"number": "2", "sharpness": "50.0", "every": "1", "window": "[0.2, 0.9]"}
    assert recipe.options == wanted
    assert "pixel for pixel" in invoke("replay", "a.png").stdout


def test_trace_and_plot(tiny_mini):
    pytest.importorskip("matplotlib", reason="pip install 'clipguide[bench]'")
    invoke("generate", "a red fox", "--seed", 1, *FAST, "--trace", "--out", "a.png")
    rows = recipes.read_trace("a.png")
    assert [row["step"] for row in rows] == [0, 1] and rows[0]["noise"] > rows[1]["noise"]
    assert {"sigma", "loss", "gradient", "angle", "guide", "judge"} <= rows[0].keys()
    assert 0 <= rows[0]["angle"] <= 180
    assert "a-trace.png" in invoke("plot", "a.png").stdout
    image = np.asarray(Image.open("a-trace.png").convert("L"))
    assert image.std() > 5
    assert "pixel for pixel" in invoke("replay", "a.png").stdout
    invoke("generate", "a red fox", "--cfg", 1, *FAST, "--trace", "--out", "b.png")
    assert all("angle" not in row for row in recipes.read_trace("b.png"))
    invoke("plot", "b.png")
    assert Image.open("b-trace.png").height < image.shape[0]  # a panel less


def test_plot_of_an_older_trace(tiny_mini):
    """One without sigma and angle."""
    pytest.importorskip("matplotlib", reason="pip install 'clipguide[bench]'")
    invoke("generate", "fox", *FAST, "--out", "a.png")
    rows = [{"step": k, "noise": 1 - k / 9, "loss": 0.5, "gradient": 0.1} for k in range(9)]
    save_again("a.png", "old.png", trace=rows)
    invoke("plot", "old.png")
    assert np.asarray(Image.open("old-trace.png").convert("L")).std() > 5


def save_again(path, other, **chunks):
    recipes.save_png(Image.open(path), recipes.read_png(path), other, **chunks)


def test_a_trace_changes_no_pixel(tiny_mini):
    for name, flags in (("a.png", []), ("b.png", ["--trace"])):
        invoke("generate", "fox", "--seed", 7, "--steps", 4, "--out", name, *flags)
    assert (pixels("a.png") == pixels("b.png")).all()
    assert all("judge" in row and "guide" in row for row in recipes.read_trace("b.png"))
    assert recipes.read_png("a.png") == recipes.read_png("b.png")


def test_a_new_seed_each_time(tiny_mini):
    for _ in range(2):
        invoke("generate", "fox", *FAST)
    seeds = {recipes.read_png(name).seed for name in os.listdir()}
    assert len(seeds) == 2


def test_grid_compare_and_preview(tiny_mini):
    options = ["--count", 3, "--seed", 7, "--grid", "--compare", "--preview", 1]
    result = invoke("generate", "fox", *options, *FAST)
    sheets = ["fox-7-preview.png", "fox-7-grid.png", "fox-7-compare.png"]
    names = ["fox-7.png", "fox-8.png", "fox-9.png"]
    assert sorted(os.listdir()) == sorted(names + sheets)
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == names + sheets
    side = pixels("fox-7.png").shape[0]
    compare = pixels("fox-7-compare.png")
    assert (compare[4 : 4 + side, side + 8 : 2 * side + 8] == pixels("fox-7.png")).all()
    invoke("generate", "fox", "--seed", 7, "--strength", 0, "--count", 3, *FAST, "--out", "plain/")
    assert (compare[4 : 4 + side, 4 : 4 + side] == pixels("plain/fox-7.png")).all()


@pytest.mark.parametrize(
    ("options", "label"),
    [(["--strength", 0.1], "guided"), (["--strength", 0, "--best-of", 2], "best of 2")],
)
def test_a_comparison_says_what_it_compares(tiny_mini, monkeypatch, options, label):
    told = []
    monkeypatch.setattr(
        files.Files, "add_sheet", lambda self, name, pictures, labels, **_: told.extend(labels)
    )
    invoke("generate", "fox", "--compare", *options, *FAST)
    assert [text.rpartition(" ")[0] for text in told] == ["unguided", label]


def test_preview_is_one_live_grid(tiny_mini, monkeypatch):
    """A file that is whole at each look: finished images, the one in work, white for the rest."""
    looks, write = [], files.Files.add_preview

    def look(self, step):
        write(self, step)
        looks.append(pixels("fox-7-preview.png"))
        assert not [name for name in os.listdir() if name.endswith(".part")]

    monkeypatch.setattr(files.Files, "add_preview", look)
    invoke("generate", "fox", "--count", 4, "--seed", 7, "--preview", 2, "--steps", 4)
    assert len(looks) == 4 * 2 + 1  # two looks an image, and the end
    assert len({look.shape for look in looks}) == 1
    finished = [pixels(f"fox-{7 + i}.png") for i in range(4)]
    side = len(finished[0])

    def cell(look, i):
        y, x = 4 + i // 2 * (side + 22), 4 + i % 2 * (side + 4)
        return look[y : y + side, x : x + side]

    for k, look in enumerate(looks):
        for i in range(4):
            if i < k // 2:
                assert (cell(look, i) == finished[i]).all()
            elif i == k // 2:  # the second look is at the last step
                is_finished = (cell(look, i) == finished[i]).all()
                assert cell(look, i).std() > 5 and is_finished == (k % 2 == 1)
            else:
                assert (cell(look, i) == 255).all()


def test_live_grid_of_many(tmp_path):
    """The latest 64, and no wider than a screen."""
    recipe = SimpleNamespace(prompt="fox")
    finished = [
        SimpleNamespace(seed=k, recipe=recipe, image=Image.new("RGB", (200, 100), (k, 0, 0)))
        for k in range(90)
    ]
    step = SimpleNamespace(index=2, total=9, preview=lambda: torch.zeros(4, 3, 100, 200))
    grid = watching.live_grid(finished, step, total=1000)
    assert grid["labels"] == [f"{k} fox" for k in range(30, 90)] + ["step 3 of 9"] * 4
    assert {picture.size for picture in grid["pictures"]} == {(128, 64)} and grid["columns"] == 8
    assert len(watching.live_grid([], step, total=6)["pictures"]) == 6


@pytest.mark.parametrize("name", ["fox.gif", "new/fox.webp"])
def test_animate(tiny_mini, name):
    options = ["--seed", 7, "--steps", 4, "--video", name, "--out", "pictures/"]
    result = invoke("generate", "fox", *options)
    assert result.stdout.splitlines()[-1] == name
    with Image.open(name) as moving:
        assert (moving.n_frames, moving.size) == (4, (32, 32))
        frames = []
        for k in range(4):
            moving.seek(k)
            frames.append(np.asarray(moving.convert("L")).astype(int))  # WebP is lossy in colour
        assert moving.info["duration"] == 2000
    finished = np.asarray(Image.open("pictures/fox-7.png").convert("L"))
    errors = [abs(frame - finished).mean() for frame in frames]
    assert errors[3] < 6 and errors[3] < min(errors[:3]) / 2
    assert "pixel for pixel" in invoke("replay", "pictures/fox-7.png").stdout


def test_animate_several(tiny_mini):
    """Side by side; the finished ones at the end, beside a comparison that is not filmed."""
    options = ["--seed", 7, "--best-of", 2, "--steps", 3, "--compare", "--json", "--out", "p/"]
    result = invoke("generate", "fox", "owl", "bee", *options, "--video", "all.gif")
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"path": "all.gif", "sheet": "animation"} in facts
    with Image.open("all.gif") as moving:
        assert moving.n_frames == 3 and moving.size == (2 * 36 + 4, 2 * 36 + 4)
        moving.seek(2)
        last = np.asarray(moving.convert("RGB")).astype(int)
    for i, fact in enumerate(facts[:3]):
        y, x = 4 + i // 2 * 36, 4 + i % 2 * 36
        assert abs(last[y : y + 32, x : x + 32] - pixels(fact["path"])).mean() < 8
    assert (last[40:72, 40:72] == 255).all()


def test_a_kept_candidate_is_named_by_its_own_seed(tiny_mini):
    """The seed in a file's name draws the image again by itself, also where several are the default
    and one has to be asked for; a name that is taken is left."""
    run = ["generate", "fox", "owl", "bee", "--best-of", 4, *FAST]
    facts = [json.loads(x) for x in invoke(*run, "--seed", 7, "--json").stdout.splitlines()]
    seeds = [fact["seed"] for fact in facts]
    assert any(seed != 7 for seed in seeds)  # else this test proves nothing
    for fact, prompt in zip(facts, ("fox", "owl", "bee"), strict=True):
        assert fact["path"] == f"{prompt}-{fact['seed']}.png"
        alone = f"{prompt}-alone.png"
        one = ["--best-of", 1, "--seed", fact["seed"]]
        invoke("generate", prompt, *one, *FAST, "--out", alone)
        apart = pixels(alone).astype(int) - pixels(fact["path"])
        assert abs(apart).max() <= 1  # alone, or in a batch
    other = next(fact for fact in facts if fact["seed"] != 7)
    before = Path(other["path"]).read_bytes()
    prompt = other["path"].split("-")[0]
    again = ["generate", prompt, "--best-of", 4, *FAST, "--seed", 7, "--json"]
    assert json.loads(invoke(*again).stdout)["path"] == f"{prompt}-7.png"
    assert Path(other["path"]).read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--decoder", "vae:layers"], "vae:layers"),
        (["--decoder", "linear"], "linear"),
        (["--decoder", "auto"], "vae:whole"),
        (["--memory", "0.00001"], "linear"),
        (["--decoder", "vae", "--memory", "0.00001"], "vae:tiles"),
        (["--budget", "1"], "vae:whole"),  # so small that nobody waits for it
    ],
    ids=str,
)
def test_decoder(tiny_mini, flags, kept):
    """The recipe keeps what was chosen: a replay draws the same, whatever memory there is."""
    run = ["generate", "fox", "--seed", 7, *FAST, *flags, "--out", "a.png"]
    invoke(*run)
    assert recipes.read_png("a.png").decoder.startswith(kept)
    assert "pixel for pixel" in invoke("replay", "a.png").stdout
    before = Path("a.png").read_bytes()
    invoke(*run, "--resume")  # it is that image
    assert Path("a.png").read_bytes() == before


def test_tiny_decoder(tiny_mini, tiny_decoder_folder):
    """A recipe that names one is not replayed unasked."""
    flags = ["--decoder", "tiny", "--tiny", tiny_decoder_folder]
    invoke("generate", "fox", "--seed", 7, *FAST, *flags, "--out", "a.png")
    recipe = recipes.read_png("a.png")
    assert (recipe.decoder, recipe.tiny) == ("tiny:whole", str(tiny_decoder_folder))
    assert "--trust" in invoke("replay", "a.png", code=2).stderr
    assert "pixel for pixel" in invoke("replay", "a.png", "--trust").stdout


FACTS = "path prompt seed guide judge better_than".split()


def test_json(tiny_mini):
    result = invoke("generate", "fox", "owl", "--seed", 7, "--grid", "--json", *FAST)
    *pictures, sheet = map(json.loads, result.stdout.splitlines())
    assert [set(p) for p in pictures] == [{*FACTS}] * 2
    assert [p["path"] for p in pictures] == ["fox-7.png", "owl-7.png"]
    assert sheet == {"path": "fox-7-grid.png", "sheet": "grid"}


def test_quiet_prints_paths_alone(tiny_mini):
    result = invoke("generate", "fox", "--seed", 7, "--quiet", *FAST)
    assert (result.stdout, result.stderr) == ("fox-7.png\n", "")


def test_exact_is_the_same_alone_and_in_company(tiny_mini):
    invoke("generate", "fox", "--seed", 7, "--count", 3, "--exact", "--out", "many/", *FAST)
    invoke("generate", "fox", "--seed", 9, "--exact", "--out", "one.png", *FAST)
    assert (pixels("many/fox-9.png") == pixels("one.png")).all()


def test_force(tiny_mini):
    Path("a.png").write_text("mine")
    result = invoke("generate", "fox", "--out", "a.png", *FAST, code=2)
    assert "--force" in result.stderr and Path("a.png").read_text() == "mine"
    invoke("generate", "fox", "--out", "a.png", "--force", *FAST)
    assert recipes.read_png("a.png").prompt == "fox"


INTERRUPTED = """
import sys
from clipguide import mini
from pathlib import Path
mini.FOLDER = Path(sys.argv.pop(1))
from clipguide.cli.app import main
main()
"""


def heed_interrupts():
    """A shell's background job, as the tests may be, hands on that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_finished(tiny_mini, tmp_path):
    options = ["fox", "--seed", "7", "--count", "1000", "--exact", "--steps", "2"]
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tiny_mini), "generate", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    while not Path("fox-8.png").exists():  # the test's own limit ends this if it never comes
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 130 and "Traceback" not in stderr and "stopped" in stderr
    names = sorted(os.listdir(), key=lambda name: int(name[4:-4]))
    assert [line.split("  ")[0] for line in stdout.splitlines()] == names and len(names) >= 2
    assert all(recipes.read_png(name) for name in names)


# replay


@pytest.fixture
def picture(tiny_mini, tmp_path):
    invoke("generate", "fox", "--count", 3, "--seed", 7, *FAST)
    return Path("fox-8.png")


def rewritten(path, **changes):
    """The same pixels under another recipe."""
    values = {**json.loads(recipes.read_png(path).to_json()), **changes}
    recipe = recipes.from_json(json.dumps(values))
    recipes.save_png(Image.open(path), recipe, "other.png")
    return "other.png"


def test_replay_is_pixel_for_pixel(picture):
    result = invoke("replay", picture, "--out", "again.png")
    assert "pixel for pixel" in result.stdout
    assert (pixels("again.png") == pixels(picture)).all()


def test_replay_of_another_seed_differs(picture):
    other = rewritten(picture, seed=1008, batch_seeds=[1008])
    result = invoke("replay", other, "--json", code=1)
    facts = json.loads(result.stdout)
    assert not facts["equal"] and facts["unequal_values"] > 0 and facts["differences"] == []


def test_replay_says_what_differs(picture):
    then = recipes.read_png(picture).libraries
    other = rewritten(
        picture,
        seed=1008,
        batch_seeds=[1008],
        libraries={**then, "torch": "1.0"},
        model_fingerprint="0" * 64,
    )
    result = invoke("replay", other, code=1)
    assert f"torch: 1.0 then, {then['torch']} now" in result.stdout
    assert f"model_fingerprint: {'0' * 64} then" in result.stdout


@pytest.mark.parametrize("field", ["model", "clip", "judge"])
def test_replay_loads_nothing_that_it_is_not_told_to(picture, field):
    other = rewritten(picture, **{field: "/tmp/evil"})
    result = invoke("replay", other, code=2)
    assert "/tmp/evil" in result.stderr and "--trust" in result.stderr


def test_replay_loads_what_it_is_told_to(picture, generator_folder):
    other = rewritten(picture, model=str(generator_folder))
    assert "pixel for pixel" in invoke("replay", other, "--trust").stdout


# models and the rest


def test_models_things():
    assert invoke("models", "--things", "fox").stdout.split() == ["fox"]
    assert "pineapple" in json.loads(invoke("models", "--things", "apple", "--json").stdout)
    missing = invoke("models", "--things", "qwertz", code=1)
    assert "draws nothing named 'qwertz'" in missing.output
    assert "--things fox" in invoke("models", "fox", code=2).output


def test_models(tiny_mini):
    result = invoke("models")
    assert "guide: test" in result.stdout and "top-1: 0.5" in result.stdout
    found = json.loads(invoke("models", "--json").stdout)
    assert [model["name"] for model in found] == ["guide", "judge", "generator", "vqgan"]
    assert all(model["licence"] and model["bytes"] > 0 for model in found)
    guide = found[0]
    assert (guide["clip"], guide["resolution"], guide["context"]) == ("mini", 32, 16)
    assert guide["fingerprint"] == load_clip("mini").fingerprint
    assert f"fingerprint {guide['fingerprint']}" in result.stdout
    assert found[2]["fingerprint"] is None and found[2]["resolution"] is None


def test_cached_clips(clip_folder, tmp_path):
    """Snapshots of the hub: of open_clip, of transformers, and of what is no CLIP."""
    from clipguide.cli.models import cached

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{")
    for name, folder in {"a": clip_folder, "b": write_hf_clip(tmp_path / "hf"), "c": other}.items():
        snapshot = tmp_path / "hub" / f"models--me--{name}" / "snapshots" / ("0" * 40)
        shutil.copytree(folder, snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    found = cached(tmp_path / "hub")
    assert [(m["name"], m["resolution"], m["context"]) for m in found] == [
        ("me/a", 32, 16),
        ("me/b", 32, 16),
    ]
    assert all(m["bytes"] > 0 and load_clip(m["clip"]).image_size == 32 for m in found)
    assert cached(tmp_path / "none") == []


def test_version():
    assert invoke("--version").stdout == "clipguide 0.1.0\n"


def test_replay_of_embedded_clips_together_needs_no_trust(tiny_mini):
    flags = ["--clip", "0.7*mini+mini-judge@:float32", "--judge", "mini-judge"]
    invoke("generate", "a red fox", "--seed", 1, *FAST, *flags, "--out", "a.png")
    assert "pixel for pixel" in invoke("replay", "a.png").stdout


def test_replay_spells_control_characters_out(picture):
    libraries = {**recipes.read_png(picture).libraries, "torch": "\x1b[31m2\x07"}
    other = rewritten(picture, seed=1008, batch_seeds=[1008], libraries=libraries)
    result = invoke("replay", other, code=1)
    assert "\x1b" not in result.output and "\\x1b[31m2\\x07 then" in result.output
