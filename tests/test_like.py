"""`generate --like FILE`: the reader of maps, and images that are like an image."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from clipguide.pipelines.jobs import Like
from clipguide.pipelines.text_to_image import TextToImage
from PIL import Image, ImageDraw
from torch.testing import assert_close
from typer.testing import CliRunner

from clipguide import images, load_clip, mini
from clipguide.cli.app import app
from clipguide.cli.naming import in_place
from clipguide.errors import ClipguideWarning, UsageError
from clipguide.mini.reader import colours, load_reader
from clipguide.objectives import Similarity, finished
from clipguide.prompts import compose
from clipguide.recipe import read_png
from clipguide.views import Cutouts

FAST = {"steps": 2, "best_of": 1}


@pytest.fixture(scope="module")
def reader():
    return load_reader()


@pytest.fixture(scope="module")
def draw():
    """The embedded models themselves: tiny ones have no maps of this size."""
    return TextToImage()


@pytest.fixture
def car(tmp_path, monkeypatch):
    """A red car on white, at car.png in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    image = Image.new("RGBA", (256, 256))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((20, 110, 236, 190), 24, "red")
    pen.rounded_rectangle((70, 60, 190, 130), 24, "red")
    for x in (50, 160):
        pen.ellipse((x, 165, x + 50, 215), "black")
    image.save("car.png")
    return image


def array(picture) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


# --------------------------------------------------------------- the reader
def test_the_trunk_is_that_of_the_guide(reader):
    """Against the layers of the model that open_clip loads, one by one."""
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{mini.path('guide')}")
    trunk, x = model.eval().visual.trunk, torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        layers = trunk.bn1(trunk.conv_stem(x * 2 - 1))
        for block in trunk.blocks[:5]:
            layers = block(layers)
        assert_close(reader.features(x), F.adaptive_avg_pool2d(layers, 4), atol=1e-4, rtol=1e-4)


def test_the_colours_are_those_of_the_pixels(reader):
    """Red, green and blue of the quarters of each cell, normalised as the training data are."""
    image = torch.rand(1, 3, 64, 64)
    found, mean = colours(image)[0], image[0].unflatten(2, (8, 8)).unflatten(1, (8, 8)).mean((2, 4))
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                quarter = mean[channel, row::2, column::2] * 2 - 1
                assert_close(found[4 * channel + 2 * row + column], quarter)
    from safetensors.torch import load_file

    axes = load_file(mini.path("generator") / "map_axes.safetensors")
    normal = (found - axes["mean"][16:, None, None]) / axes["deviation"][16:, None, None]
    # The reader's weights are in half precision.
    assert_close(reader(image)[0, 16:], normal, atol=5e-3, rtol=1e-3)


def test_it_reads_what_the_memory_has(reader, draw):
    """Maps that it never saw: images of the memory's maps are read back to about these maps."""
    memory = draw.pipe.memory
    few = list(range(0, memory.config.size, memory.config.size // 8))[:8]
    true = memory.recall(few, [None] * 8)
    made = draw.pipe(
        [""] * 8, maps=true, num_inference_steps=8, output_type="pt",
        generator=[torch.Generator().manual_seed(k) for k in range(8)],
    ).images  # fmt: skip
    read = reader(made.float())
    apart = torch.cdist(read[:, :16].flatten(1), true[:, :16].flatten(1))
    assert (apart.argmin(1) == torch.arange(8)).all()
    assert np.corrcoef(read[:, :16].flatten(), true[:, :16].flatten())[0, 1] > 0.85


# --------------------------------------------------------------- the images
def test_without_a_prompt_it_is_a_paraphrase(car, draw):
    """It looks like the file, another seed draws another one, and CLIP compares with the file."""
    one, other = draw("", like="car.png", count=2, seed=4, **FAST)
    source = np.asarray(images.load("car.png")).astype(int)
    for picture in (one, other):
        assert abs(array(picture) - source).mean() < 25
    assert 0.5 < abs(array(one) - array(other)).mean() < 25
    for score, name in ((one.guide_score, "mini"), (one.judge_score, "mini-judge")):
        clip = load_clip(name)
        both = (
            clip.encode_pictures([one.image]),
            clip.encode_image(images.to_tensor([images.load("car.png")])),
        )
        assert score == pytest.approx(float((both[0] * both[1]).sum()), abs=1e-3)


def test_the_best_is_that_most_like_the_image(car, draw):
    """By the guide and the judge, which nothing steered towards."""
    (best,) = draw("", like="car.png", seed=4, best_of=2, steps=2)
    assert best.seed in (4, 1_000_004)
    near = Similarity(draw.clip, compose(images.load("car.png")), views=Cutouts(number=4))
    rank = -float(finished(near)(images.to_tensor([best.image]))) + best.judge_score
    assert best.rank == pytest.approx(rank, abs=0.02)


def test_the_prompt_says_what_to_change(car, draw):
    (red,) = draw("a car", like="car.png", seed=4, **FAST)
    (blue,) = draw("a blue car", like="car.png", seed=4, **FAST)
    (free,) = draw("a blue car", seed=4, **FAST)
    source = np.asarray(images.load("car.png")).astype(int)
    ink = (source.sum(2) < 700) & (source.sum(2) > 100)  # the body
    reds, blues = (array(picture)[ink].mean(0) for picture in (red, blue))
    assert reds[0] > reds[2] + 40 and blues[2] > blues[0] + 40
    white = source.sum(2) > 750
    assert array(blue)[white].mean() > 235  # it has the shape of the file
    assert (array(blue) != array(free)).any()


def test_a_recipe_draws_it_again(car, draw):
    (made,) = draw("a blue car", like="car.png", seed=4, **FAST)
    assert list(made.recipe.like) == ["car.png"] and made.recipe.files == ("car.png",)
    assert len(made.recipe.reader_fingerprint) == 64
    again = draw.replay(made.recipe)
    assert (array(again) == array(made)).all() and again.recipe == made.recipe
    Image.new("RGB", (256, 256), "green").save("car.png")
    with pytest.raises(UsageError, match="not the image that the recipe began with"):
        draw.replay(made.recipe)


def test_without_it_a_recipe_is_as_before(draw):
    (made,) = draw("a fox", seed=1, **FAST)
    assert made.recipe.like == {} and made.recipe.reader_fingerprint == ""


def test_transparent_turned_and_wide_files(car, reader):
    """A transparent one stands on white, EXIF turns one, and a wide one is cut with a warning."""
    whole = Like.read("car.png", reader, "").map
    Image.alpha_composite(Image.new("RGBA", car.size, "white"), car).convert("RGB").save("w.png")
    assert torch.equal(Like.read("w.png", reader, "").map, whole)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("w.png").rotate(90).save("turned.png", exif=exif)
    assert torch.equal(Like.read("turned.png", reader, "").map, whole)
    wide = Image.new("RGBA", (512, 256))
    wide.paste(car, (128, 0))
    wide.save("wide.png")
    with pytest.warns(ClipguideWarning, match="wide.png is 512x256: it is cut"):
        assert torch.equal(Like.read("wide.png", reader, "").map, whole)


def test_another_generator_has_no_maps(car, pipe, clip):
    with pytest.raises(UsageError, match="for the embedded generator"):
        TextToImage(model=pipe, clip=clip)("a fox", like="car.png", steps=2)


@pytest.mark.parametrize(("prompts", "like"), [("", None), (["a fox", ""], None), (" ", "car.png")])
def test_only_an_image_replaces_a_prompt(car, draw, prompts, like):
    with pytest.raises(UsageError, match="The prompt is empty"):
        draw(prompts, like=like, **FAST)


# ---------------------------------------------------------- the command line
def run(*words: object, code: int = 0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def test_the_command(car):
    few = ("--steps", 1, "--best-of", 1, "--seed", 7)
    assert "like-car-7.png" in run("generate", "--like", "car.png", *few).output
    recipe = read_png("like-car-7.png")
    assert list(recipe.like) == ["car.png"] and recipe.prompt == recipe.guide == ""
    assert "--trust" in run("replay", "like-car-7.png", code=2).stderr
    assert "pixel for pixel" in run("replay", "like-car-7.png", "--trust").output
    again = ("generate", "--config", "like-car-7.png", "--out", "again.png")
    assert "car.png" in run(*again, code=2).stderr
    run(*again, "--trust")
    assert (np.asarray(Image.open("again.png")) == np.asarray(Image.open("like-car-7.png"))).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--like", "no.png"), "There is no file no.png."),
        (("--like", "text.png"), "text.png is not an image"),
        (("--like", "cut.png"), "cut.png cannot be read"),
        (("--like", "."), "is not a file"),
        (("a fox", "--like", "car.png", "--model", "a/b"), "--like is for the embedded generator"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(car, monkeypatch, words, message):
    from clipguide.pipelines import text_to_image

    monkeypatch.setattr(text_to_image, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    with open("text.png", "w") as file:
        file.write("no image")
    with open("car.png", "rb") as whole, open("cut.png", "wb") as file:
        file.write(whole.read()[:300])
    told = run("generate", *words, code=2).stderr
    assert message in " ".join(told.split()) and "Traceback" not in told


@pytest.mark.parametrize("stem", ["a|b:99", "FOX (1)", "狐"])
def test_files_are_named_after_the_image(stem):
    from pathlib import Path

    from clipguide.cli.naming import slug

    assert slug(in_place("", Path(f"{stem}.png"))).startswith("like-")
    assert in_place("a fox", Path("car.png")) == "a fox" and in_place("", None) == ""
