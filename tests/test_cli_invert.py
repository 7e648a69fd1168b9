"""clipguide invert, and a CLIP with learned words by its name."""

from __future__ import annotations

import pytest
from coloured import draw
from typer.testing import CliRunner

from clipguide import load_clip
from clipguide.cli.app import app
from clipguide.clip import Concept, load_parts
from clipguide.engine import Engine
from clipguide.errors import UsageError


@pytest.fixture
def pictures(tmp_path):
    for number in range(3):
        draw("#d02020", number).save(tmp_path / f"{number}.png")
    return tmp_path


def invert(*arguments):
    return CliRunner().invoke(app, ["invert", *map(str, arguments)])


@pytest.fixture
def concept(pictures, clip_folder):
    out = pictures / "zorp.safetensors"
    done = invert(pictures, "-w", "zorp", "--clip", clip_folder, "-o", out, "--steps", 30)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out}  zorp, cosine ")
    return out


def test_a_word_behind_the_name(concept, clip_folder, judge_folder, clip):
    learned = load_clip(f"{clip_folder}~{concept}@cpu")
    texts = ["a zorp", "a red fox"]
    moved, stayed = (learned.encode_text(texts) - clip.encode_text(texts)).norm(dim=1).tolist()
    assert moved > 0.05 and stayed == 0
    assert learned.fingerprint != clip.fingerprint
    assert Engine(learned).key == Engine(clip).key
    pair = load_clip(f"{clip_folder}~{concept}+{judge_folder}")
    plain = load_clip(f"{clip_folder}+{judge_folder}")
    assert pair.image_fingerprint == plain.image_fingerprint
    assert pair.fingerprint != plain.fingerprint
    assert (pair.encode_text(texts) - plain.encode_text(texts)).norm(dim=1).tolist()[1] == 0


def test_pictures_are_found_by_a_learned_word(concept, pictures, clip_folder, tmp_path):
    """An index of the CLIP without the word takes a question of the one with it."""
    pytest.importorskip("lancedb")
    runner, db = CliRunner(), tmp_path / "db"
    words = ["index", str(pictures), "--clip", str(clip_folder), "--db", str(db)]
    assert runner.invoke(app, words).exit_code == 0
    name = f"{clip_folder}~{concept}"
    done = runner.invoke(app, ["search", "a zorp", "--db", str(db), "--clip", name])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 3


def test_words_of_others(concept, clip_folder, judge_folder):
    with pytest.raises(UsageError, match="'zorp' was learned by another CLIP"):
        load_clip(f"{judge_folder}~{concept}")
    with pytest.raises(UsageError, match="There is no concept nowhere.safetensors"):
        load_clip(f"{clip_folder}~nowhere.safetensors")
    with pytest.raises(UsageError, match="learned words.*leave out"):
        load_parts(f"{clip_folder}~{concept}")
    assert Concept.load(concept).word == "zorp"


@pytest.mark.parametrize(("word", "known"), [("fox", True), ("owl", True), ("zorp", False)])
def test_a_word_that_means_something(pictures, clip_folder, word, known):
    """One token of its own, or a name that mini was trained on."""
    done = invert(pictures, "-w", word, "--clip", clip_folder, "--steps", 1, "-o", pictures / "x")
    assert done.exit_code == 0, done.output
    assert (f"'{word}' is a word already" in done.stderr) == known


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-w", ""), "The word is empty"),
        (("-w", "two words"), "'two words' are several words: choose a word"),
        (("-w", "zorp", "--steps", "0"), "steps must be above 0"),
        (("-w", "zorp", "--like", ""), "is there already: give --force"),
    ],
)
def test_one_sentence_each(pictures, clip_folder, arguments, said):
    (pictures / "mine.safetensors").touch()
    out = "mine" if "--like" in arguments else "other"
    done = invert(
        pictures / "0.png", "--clip", clip_folder, "-o", pictures / f"{out}.safetensors", *arguments
    )
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert not (pictures / "other.safetensors").exists()
