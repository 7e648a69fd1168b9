"""What the figures of colours and of two objects are made of."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from clipguide import TextToImage
from clipguide.errors import ClipguideWarning
from training.data.colours import dominant_colour
from training.evaluate.clips import by_views
from training.evaluate.drawings import Drawing
from training.evaluate.generator import memory_figures, painted, sides_right


def square(*rgb: int) -> np.ndarray:
    """A drawing: a square on nothing, lighter to the right."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    shade = np.linspace(0.8, 1.2, 48)[None, :, None]
    rgba[8:56, 8:56, :3] = np.clip(np.array(rgb) * shade, 0, 255)
    rgba[8:56, 8:56, 3] = 255
    return rgba


def test_a_real_drawing_is_painted():
    """One that can have the colour, on white; none of a thing that cannot."""
    rgba = [square(200, 40, 40), square(10, 10, 10)]
    found = [Drawing(k, thing, "a", "a", "objects") for k, thing in enumerate(("box", "ink"))]
    drawings = SimpleNamespace(rgba=rgba, trained=found[:1], held_out=found[1:])
    picture = painted(drawings, "blue", "box", np.random.default_rng(0))
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (255, 255, 255)
    middle = np.asarray(picture.crop((8, 8, 56, 56)))
    opaque = np.concatenate([middle, np.full((48, 48, 1), 255, np.uint8)], -1)
    assert dominant_colour(opaque)[0] == "blue"
    assert painted(drawings, "blue", "ink", np.random.default_rng(0)) is None


def test_sides():
    """By a referee that sees how red and how blue a picture is: red left of blue is right; swapped,
    the sides are wrong; and a thing that is behind ten others in its half is not there."""
    page = Image.new("RGB", (64, 64), "white")
    page.paste((255, 0, 0), (4, 20, 28, 44))
    page.paste((0, 0, 255), (36, 20, 60, 44))

    def encode_pictures(pictures: list[Image.Image]) -> torch.Tensor:
        mean = [np.asarray(picture, float).mean((0, 1)) for picture in pictures]
        return torch.tensor(np.stack(mean))[:, [0, 2]].float()

    names = ["red", "blue", *map(str, range(10))]
    text_KD = torch.cat([torch.eye(2), torch.tensor([[1.0, 0.4]]).repeat(10, 1)])
    drawings = SimpleNamespace(place={name: k for k, name in enumerate(names)})
    referee = SimpleNamespace(encode_pictures=encode_pictures)
    rows = [("", "red", "blue"), ("", "blue", "red"), ("", "red", "red")]
    both_B, sides_B = sides_right(referee, [page] * 3, rows, drawings, text_KD)
    assert both_B.tolist() == [False, False, False]  # ten things are half red, half blue
    text_KD[2:] = 0
    both_B, sides_B = sides_right(referee, [page] * 3, rows, drawings, text_KD)
    assert both_B.tolist() == [True, True, True] and sides_B.tolist() == [True, False, False]


def test_near_copies_by_the_number_of_drawings():
    """Of all samples but the rare ones, and by how many training drawings the things have; a
    mirrored one is near, and one of a thing without a drawing counts among all alone."""
    rgba = np.stack([square(200, 40, 40), square(40, 200, 40), square(40, 40, 200)])
    things = ("box", "ink", "ink")
    found = [Drawing(k, thing, "a", "a", "objects") for k, thing in enumerate(things)]
    white = np.full((64, 64, 3), 255, np.uint8)
    copy = np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8)
    drawn = np.stack([[copy[0, :, ::-1], white], [copy[1], white], [white, copy[2]]])
    parts = [(drawn[:1], ["box"]), (drawn[1:], ["ink", "none"])]
    drawings = SimpleNamespace(rgba=rgba, trained=found)
    rare = np.stack([[copy[0]]]), ["box"]
    measured = memory_figures(drawings, parts, rare, {})
    rows = {one.key.partition("picture")[2]: one for one in measured}
    assert {key: (one.value, one.n) for key, one in rows.items()} == {
        "": (0.5, 6), ", 1 drawing": (round(2 / 3, 5), 3), ", 2 or 3 drawings": (0.5, 2)
    }  # fmt: skip


def test_guide_and_judge_are_added_as_best_of_does(tiny_mini):
    """The sum is the rank of the kept image, to the rounding of 8 bits."""
    draw = TextToImage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipguideWarning)
        (picture,) = draw("a fox", steps=2, strength=0.0, best_of=2, seed=1)
    text_KD = draw.clip.encode_text(["a cat", "a fox"])
    score_1K = by_views(draw.clip, picture.image, text_KD)
    assert abs(float(score_1K[0, 1]) + picture.judge_score - picture.rank) < 2e-3
    assert abs(float(score_1K[0, 0]) + picture.judge_score - picture.rank) > 1e-2
