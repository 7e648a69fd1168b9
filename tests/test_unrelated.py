"""What a score means: its place among the scores of unrelated texts, and the word for it."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from typer.testing import CliRunner

from clipguide import images, load_clip
from clipguide.cli.app import app
from clipguide.unrelated import EVERY, WORDS, Unrelated, sure, words

SAMPLES = images.__file__.rsplit("/", 2)[0] + "/samples/pictures"
NAMES = ("fox", "pizza", "key")


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-judge")


@pytest.fixture(scope="module")
def image_BD(clip):
    return clip.encode_pictures([images.load(f"{SAMPLES}/{name}.png") for name in NAMES])


def test_words_fall_with_the_share():
    shares = torch.linspace(0, 1, 101).tolist()
    order = [word for _, word in WORDS][::-1]
    places = [order.index(sure(share)) for share in shares]
    assert places == sorted(places) and set(places) == {0, 1, 2, 3}
    assert sure(0.99) == "very sure" and sure(0.9899) == "sure" and sure(0.0) == "no match"


def test_a_share_is_counted(clip, image_BD):
    """By a loop over the nouns that mean something else."""
    unrelated = Unrelated(clip)
    text_D = clip.encode_text(["a fox"])[0]
    score_B = image_BD @ text_D
    found = unrelated.shares(image_BD, "a fox", score_B)
    cosine_BW = (image_BD @ clip.encode_text(words()[::EVERY]).T).tolist()
    counted = unrelated._unlike("a fox").tolist()
    for b in range(len(NAMES)):
        lower = total = 0
        for w, other in enumerate(counted):
            total += other
            lower += other and cosine_BW[b][w] < float(score_B[b])
        assert found[b] == pytest.approx(lower / total, abs=1.5 / total)


def test_a_noun_that_means_the_text_is_left_out(clip):
    noun = words()[EVERY]
    assert not Unrelated(clip)._unlike(f"a {noun}")[1]


def test_what_is_there_is_sure_and_what_is_not_is_less(clip, image_BD):
    unrelated, unsure = Unrelated(clip), []
    for b, name in enumerate(NAMES):
        score_B = image_BD @ clip.encode_text([name])[0]
        shares = unrelated.shares(image_BD, name, score_B)
        unsure += [name] if sure(shares[b]) not in ("sure", "very sure") else []
        assert all(share < shares[b] for k, share in enumerate(shares) if k != b)
    assert len(unsure) <= 1, unsure


def run(*words) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_command_says_the_same(tmp_path):
    """score, rerank, classify and search of an image and a text: one share, one word."""
    fox, judged = f"{SAMPLES}/fox.png", ("--clip", "mini-judge", "--no-cache")
    (told,) = json.loads(run("score", fox, "--text", "fox", *judged, "--json"))
    share = told["better_than"]["fox"]
    word = sure(share)
    assert f" {word}" in run("score", fox, "--text", "fox", *judged)
    (row,) = json.loads(run("rerank", fox, "--text", "fox", *judged, "--json"))
    assert row["better_than"] == pytest.approx(share) and word in run(
        "rerank", fox, "--text", "fox", *judged
    )
    plain = tmp_path / "plain.txt"
    plain.write_text("{}\n")
    named = ("classify", fox, "--labels", "fox,owl", "--templates", plain, *judged)
    (row,) = json.loads(run(*named, "--json"))
    assert row["labels"][0]["better_than"] == pytest.approx(share)
    assert f"({word})" in run(*named)
    (line,) = list(csv.DictReader(io.StringIO(run(*named, "--format", "csv"))))
    assert float(line["better_than"]) == pytest.approx(share, abs=1e-5)
    texts = tmp_path / "texts.txt"
    texts.write_text("fox\n")
    asked = ("search", "--image", fox, "--texts", texts, "--clip", "mini-judge")
    (row,) = json.loads(run(*asked, "--json"))
    assert row["better_than"] == pytest.approx(share) and word in run(*asked)


def test_drawn_images_too(tiny_mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("generate", "a fox", "--steps", "2", "--seed", "1", "--force")
    told = run(*given)
    (row,) = map(json.loads, run(*given, "--json").splitlines())
    for name in ("guide", "judge"):
        assert f"{name} {row[name]:.3f} ({sure(row['better_than'][name])})" in told
    assert "(" not in run(*given, "--quiet")
