"""The training data: names, colours, captions, and that nothing held out is ever in a sample."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data import compose
from training.data.captions import article, banned_words, colour_words, number_of, plural
from training.data.colours import TERMS, colour_name, dominant_colour, prototypes, term_indices
from training.data.compose import Mix, TrainingSet
from training.data.emoji import concept_key, neutral
from training.data.near import nearest, thumbnails
from training.data.recolour import recoloured
from training.data.restyle import flat, inked, outlined

TRAINING = Path(__file__).parents[1] / "training"
REAL = TRAINING / "cache" / "data"
RGB = {"red": (220, 30, 40), "green": (40, 160, 60), "blue": (30, 90, 220),
       "orange": (250, 130, 20), "yellow": (250, 220, 40), "purple": (126, 40, 160)}
THINGS = {"fox": "orange", "apple": "red", "car": "blue", "frog": "green", "sun": "yellow",
          "grape": "purple", "fire engine": "red", "red heart": "red", "scissors": "blue"}
SHAPES = ("ellipse", "rectangle", "rounded_rectangle")


def draw(shape: str, colour: str) -> np.ndarray:
    """A shape with a dark spot, RGBA of 192 px."""
    image = Image.new("RGBA", (192, 192))
    pen = ImageDraw.Draw(image)
    getattr(pen, shape)((10, 40, 182, 150), fill=RGB[colour])
    pen.ellipse((80, 80, 100, 100), fill=(20, 20, 20))
    return np.asarray(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Nine things in three families of shape each, and a test style, as the builder writes them."""
    out = tmp_path_factory.mktemp("data")
    pictures, lines = [], []
    for family, shape in enumerate((*SHAPES, "ellipse")):
        for concept, colour in THINGS.items():
            test = family == len(SHAPES)
            lines.append({
                "index": len(lines), "set": "openmoji" if test else f"set{family}",
                "style": shape, "family": "openmoji" if test else f"family{family}",
                "concept": concept, "names": [concept, f"{concept} thing", "vixen"],
                "keywords": ["vixen", "animal"], "category": "objects", "symbol": False,
                "mono": False, "split": "test_style" if test else "train",
            })
            pictures.append(draw(shape, colour))
    np.save(out / "pictures.npy", np.stack(pictures))
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


HOLDOUT = {
    "pairs": [{"concept": "fox", "family": "family1"}, {"concept": "sun", "family": "family0"}],
    "colours": [{"colour": "green", "concept": "fox"}, {"colour": "blue", "concept": "apple"}],
}
SYNONYMS = {"vixen": "fox"}


def check(data: TrainingSet, holdout: dict, synonyms: dict, count: int) -> None:
    """No sample of `count` shows or says what is held out; the colours said are in the pixels.

    Of 200 samples one may lack a colour: thin lines made small blend into the ground.
    """
    rng, missing = np.random.default_rng(0), []
    held = {(p["concept"], p["family"]) for p in holdout["pairs"]}
    colours = {(p["colour"], p["concept"]) for p in holdout["colours"]}
    banned = banned_words(synonyms)
    for row in data.rows:
        assert row["split"] == "train" and (row["concept"], row["family"]) not in held
    for visit in range(count):
        sample = data.sample(rng) if visit % 3 else data.single(
            data.row(rng)["index"], rng, recolour=bool(visit % 2))
        assert not banned.search(sample.caption), sample.caption
        for concept in sample.concepts:
            assert (sample.colour, concept) not in colours, sample.caption
            for colour in colour_words(sample.caption):
                assert (colour, concept) not in colours, sample.caption
        assert sample.rgb.shape == (data.size, data.size, 3) and sample.rgb.dtype == np.uint8
        here = {TERMS[i] for i in np.unique(term_indices(sample.rgb)) if i < len(TERMS)}
        if not colour_words(sample.caption) <= here:
            missing.append((sample.caption, here))
    assert len(missing) <= count / 200, missing


@pytest.mark.parametrize("mix", [Mix(), Mix(restyle=1.0)], ids=["own hand", "restyled"])
def test_nothing_held_out_in_samples(folder, mix):
    data = TrainingSet(folder, 64, mix, holdout=HOLDOUT, synonyms=SYNONYMS)
    check(data, HOLDOUT, SYNONYMS, 3000)
    assert {r["concept"] for r in data.held_rows()} == {"fox", "sun"}
    assert len(data.style_rows("openmoji")) == len(THINGS)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "manifest.jsonl").exists(), reason="the data is not built")
def test_nothing_held_out_in_real_samples():
    holdout = json.loads((TRAINING / "holdout.json").read_text("utf-8"))
    synonyms = json.loads((TRAINING / "synonyms.json").read_text("utf-8"))
    data = TrainingSet(REAL, 128)
    families: dict[str, set] = {}
    for row in data.rows + data.held_rows():
        if not row["symbol"]:
            families.setdefault(row["concept"], set()).add(row["family"])
    for pair in holdout["pairs"]:
        assert pair["family"] in families[pair["concept"]] and len(families[pair["concept"]]) >= 3
    assert {p["concept"] for p in holdout["colours"]} <= set(data.concepts)
    assert set(synonyms.values()) <= set(data.concepts)
    check(data, holdout, synonyms, 6000)


def test_hold_out_lists():
    holdout = json.loads((TRAINING / "holdout.json").read_text("utf-8"))
    synonyms = json.loads((TRAINING / "synonyms.json").read_text("utf-8"))
    assert len({(p["concept"], p["family"]) for p in holdout["pairs"]}) == 400
    assert len({(p["colour"], p["concept"]) for p in holdout["colours"]}) == 100
    assert {p["colour"] for p in holdout["colours"]} <= set(TERMS)
    assert len(synonyms) == 100 and not any(w == c for w, c in synonyms.items())


def test_same_seed_same_sample(folder):
    data = TrainingSet(folder, 64, holdout=HOLDOUT, synonyms=SYNONYMS)
    first, second = (data.sample(np.random.default_rng(5)) for _ in range(2))
    assert first.caption == second.caption
    np.testing.assert_array_equal(first.rgb, second.rgb)


def test_captions_vary(folder):
    data = TrainingSet(folder, 64, holdout=HOLDOUT, synonyms=SYNONYMS)
    rng = np.random.default_rng(0)
    captions = {data.sample(rng).caption for _ in range(500)}
    assert len(captions) > 300
    text = "\n".join(captions)
    for phrase in ("beside", "to the left of", "two ", "background", "small", "a drawing of"):
        assert phrase in text
    assert not re.search(r"\ba [aeio]\w+|\ban [bcdfg]", text)


def test_recolour_is_true_and_keeps_the_rest():
    rgba = draw("ellipse", "red")
    out = recoloured(rgba, "blue", np.random.default_rng(0))
    assert dominant_colour(out)[0] == "blue"
    np.testing.assert_array_equal(out[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(out[90, 90], rgba[90, 90])  # the dark spot


@pytest.mark.parametrize("hand", [outlined, flat], ids=["outlined", "flat"])
@pytest.mark.parametrize("colour", ["red", "blue", "yellow"])
def test_another_hand_keeps_colour_and_place(hand, colour):
    rgba, rng = draw("ellipse", colour).copy(), np.random.default_rng(0)
    rgba[..., :3] = rgba[..., :3] * np.linspace(0.8, 1, 192)[:, None, None]  # shaded
    out = hand(rgba, rng)
    assert dominant_colour(out)[0] == colour and (out != rgba).any()
    apart = (out[..., 3] > 128) ^ (rgba[..., 3] > 128)
    assert apart.mean() < 0.05  # of the page: a rim at the most
    assert len(np.unique(flat(rgba, rng)[..., :3].reshape(-1, 3), axis=0)) <= 7


def test_a_hand_that_loses_a_colour_is_not_shown(folder, monkeypatch):
    def grey(rgba, rng):
        out = rgba.copy()
        out[..., :3] = 128
        return out

    for hand in ("outlined", "flat"):
        monkeypatch.setattr(compose, hand, grey)
    monkeypatch.setattr(compose, "inked", lambda rgba, rng: None)
    data = TrainingSet(folder, 64, Mix(restyle=1.0), holdout=HOLDOUT, synonyms=SYNONYMS)
    rng = np.random.default_rng(0)
    for row in data.rows:
        rgba, _, _ = data.thing(row, rng, 0.0)
        assert dominant_colour(rgba)[0] == dominant_colour(data.rgba[row["index"]])[0]


def test_one_ink():
    """A half of the drawing in one true colour; nothing where no half could be told."""
    rgba = draw("rectangle", "red").copy()
    assert not any(inked(rgba, np.random.default_rng(seed)) for seed in range(9))  # no halves
    rgba[60:130, 40:150, :3] = 250  # a window
    found = [inked(rgba, np.random.default_rng(seed)) for seed in range(40)]
    halves = [pair for pair in found if pair]
    for out, term in halves:
        assert term != "white" and dominant_colour(out)[0] == term
        assert (out[..., 3] > 128).sum() < (rgba[..., 3] > 128).sum()
    assert len({term for _, term in halves}) > 3
    assert inked(np.zeros_like(rgba), np.random.default_rng(0)) is None


@pytest.mark.parametrize("colour,rgb", list(RGB.items()) + [
    ("white", (255, 255, 255)), ("black", (0, 0, 0)), ("grey", (140, 140, 140)),
    ("brown", (110, 60, 20)), ("pink", (255, 150, 200)), (None, (0, 150, 150)),
    (None, (230, 218, 166)),
])
def test_colour_names(colour, rgb):
    assert colour_name(rgb) == colour


def test_table_of_colours_agrees_with_the_exact_names():
    rgb = np.random.default_rng(0).integers(0, 256, (4000, 3)).astype(np.uint8)
    exact = np.array([TERMS.index(n) if (n := colour_name(c)) else len(TERMS) for c in rgb[:500]])
    both = (exact < len(TERMS)) & (term_indices(rgb[:500]) < len(TERMS))
    assert (exact == term_indices(rgb[:500]))[both].mean() > 0.98
    assert set(prototypes()) == {*TERMS, "none"}


def test_articles_and_plurals():
    assert [article(w) for w in ("apple", "unicorn", "umbrella", "hourglass", "ufo", "x-ray")] == [
        "an apple", "a unicorn", "an umbrella", "an hourglass", "a ufo", "an x-ray"]
    assert [plural(w) for w in ("fox", "mouse", "glass of milk", "cherry", "woman", "sheep",
                                "knife", "person with beard", "bus", "key")] == [
        "foxes", "mice", "glasses of milk", "cherries", "women", "sheep", "knives",
        "people with beard", "buses", "keys"]
    assert [number_of(w) for w in ("fox", "scissors", "bread", "grapes", "bow and arrow")] == [
        "one", "many", "mass", "many", "many"]


def test_concepts_are_joined():
    assert concept_key("Grapes") == "grape" and concept_key("automobile") == "car"
    assert concept_key("face with hearts", person=True) == "face with hearts"
    assert neutral("1F3C3-200D-2640-FE0F") == ("1f3c3", "stand-in")
    assert neutral("1F44D-1F3FB")[0] is None and neutral("1F98A") == ("1f98a", "itself")


def test_nearest_is_the_rmse_of_thumbnails_on_white():
    """A transparent image is white, a grey one at 40 % is lighter; blocks are averaged."""
    shades = np.zeros((4, 64, 64, 4), np.uint8)
    shades[1] = shades[2] = (51, 51, 51, 255)
    shades[2, ..., 3] = 102
    shades[3, :, ::2] = (0, 0, 0, 255)  # every second column is black, the others are white
    small = thumbnails(shades)
    assert small.shape == (4, 32 * 32 * 3)
    values = [1.0, 0.2, 0.2 * 0.4 + 0.6, 0.5]
    for row, value in zip(small, values, strict=True):
        np.testing.assert_allclose(row, value, atol=1e-6)
    np.testing.assert_allclose(nearest(small[[0, 3]], small[[1, 2]]), [0.32, 0.18], atol=1e-3)
