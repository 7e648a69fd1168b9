"""What reviewers said of images: counted, and turned into figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipguide.errors import UsageError
from clipguide.mini import known
from training import eyes
from training.evaluate import doubts
from training.evaluate.ledger import Settings

KEY = {
    "0": {"prompt": "a red fox", "guide": 0.3, "judge": 0.3},
    "1": {"prompt": "a white horse", "guide": 0.1, "judge": 0.1},
    "2": {"prompt": "a blue car", "guide": 0.1, "judge": 0.1},
    "3": {"prompt": "an apple", "guide": 0.3, "judge": 0.3},
    "4": {"prompt": "a fox eating sushi", "guide": 0.3, "judge": 0.3},  # a doubt
}
SAID = {"a": ["good", "bad", "so-so", "good", "bad"], "b": ["good", "bad", "bad", "good", "bad"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(eyes, "EYES", tmp_path / "eyes.json")
    monkeypatch.setattr(doubts, "EYES", tmp_path / "eyes.json")
    monkeypatch.setattr(eyes, "weights", lambda: {"generator": "1"})
    key = {"weights": {"generator": "1"}, "images": KEY}
    (tmp_path / "key.json").write_text(json.dumps(key))
    for name, said in SAID.items():
        lines = [f"{k}\t{verdict}\tmore" for k, verdict in enumerate(said)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    return tmp_path


def test_figures_of_verdicts(folder):
    """Shares of all answers; warnings only where the reviewers agree."""
    eyes.count(folder)
    found = {one.key.removeprefix("generator: "): one for one in doubts.eyes(Settings())}
    shares = {key: (one.value, one.n) for key, one in found.items()}
    assert shares == {
        "looked at, good": (0.4, 10),
        "looked at, so-so": (0.1, 10),
        "looked at, bad": (0.5, 10),
        "doubted, of good images": (0.0, 2),
        "doubted, of bad images": (1.0, 2),
    }
    assert found["looked at, bad"].weights == {"generator": "1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "b.tsv").write_text("0\tgood"), "one verdict for each image: 1, 2, 3, 4"),
        (lambda f: (f / "b.tsv").write_text("0\tfine"), "'fine' is none of good, so-so, bad"),
        (lambda f: [p.unlink() for p in f.glob("*.tsv")], "Not every reviewer"),
    ],
)
def test_verdicts_that_are_not_whole(folder, change, words):
    change(folder)
    with pytest.raises(UsageError, match=words):
        eyes.count(folder)


def test_verdicts_of_other_weights(folder, monkeypatch):
    monkeypatch.setattr(eyes, "weights", lambda: {"generator": "2"})
    with pytest.raises(UsageError, match="draw them again"):
        eyes.count(folder)


def test_images_in_an_order_by_chance(tiny_mini, tmp_path, monkeypatch):
    """Each prompt once, with the scores that the warning goes by; comments and blanks are none."""
    monkeypatch.setattr(eyes, "weights", dict)
    prompts = [f"a fox, {k}" for k in range(4)]
    (tmp_path / "prompts.txt").write_text("\n".join(["# first", "", *prompts]))
    eyes.draw(tmp_path / "prompts.txt", tmp_path / "out")
    key = json.loads((tmp_path / "out" / "key.json").read_text())["images"]
    drawn = [row["prompt"] for row in key.values()]
    assert sorted(drawn) == prompts and drawn != prompts
    for number, row in key.items():
        with Image.open(tmp_path / "out" / f"{number}.png") as image:
            assert image.size == (32, 32)
        assert -1 <= row["guide"] <= 1 and -1 <= row["judge"] <= 1


def test_the_referee_measures_the_warning(monkeypatch):
    """Below the least sum of both scores, which is another one for a long prompt: single objects
    that are named and those that are not, and right images of all kinds."""

    class Clip:
        def __init__(self, score_B: list[float]) -> None:
            self.score_B = torch.tensor(score_B)

        def encode_pictures(self, images: list) -> torch.Tensor:
            return self.score_B[:, None]

        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.ones(len(texts), 1)

    short, long = "a fox", "a red fox left of a cat"
    middle = (known.LEAST + known.LEAST_IF_LONG) / 2  # low for a short prompt alone
    sums = [0.1, known.LEAST + 0.01, 0.2, known.LEAST + 0.2, middle, middle, 0.1, 0.1]
    clips = {"guide": Clip([one - 0.05 for one in sums]), "judge": Clip([0.05] * len(sums))}
    monkeypatch.setattr(Settings, "clip", lambda self, name: clips[name])
    objects = doubts.Drawn([short] * 4, [None] * 4, torch.tensor([True, True, False, False]))
    other = doubts.Drawn(
        [short, long, long, long], [None] * 4, torch.tensor([True, True, True, False])
    )
    found = list(doubts.by_referee(Settings(), objects, [other], {}))
    assert [(one.value, one.n) for one in found] == [
        (0.5, 2), (0.5, 2), (round(2 / 3, 5), 3), (0.5, 2)
    ]  # fmt: skip
    assert [one.key.partition(", of ")[2] for one in found] == [
        "images named by the referee", "images not named by the referee",
        "right images, up to 6 words", "right images, 7 words or more",
    ]  # fmt: skip


def test_warnings_of_what_it_cannot_draw(tmp_path, monkeypatch):
    """By the words, or else by the scores of the image; every one counts once."""
    (tmp_path / "unknown.txt").write_text("# told\nfreedom\n\na red fox\na green frog\n", "utf-8")
    monkeypatch.setattr(doubts, "UNKNOWN", tmp_path / "unknown.txt")
    monkeypatch.setattr(
        doubts, "sums", lambda settings, prompts, drawn: torch.tensor([0.1, 0.1, 0.6])
    )
    seen = []

    def draw(self, prompts, *, seeds, way):
        seen.append((list(prompts), seeds, way))
        return np.zeros((3, 1, 8, 8, 3), np.uint8)

    monkeypatch.setattr(doubts.samples.Samples, "__call__", draw)
    (found,) = doubts.unknown(Settings())
    assert seen == [(["freedom", "a red fox", "a green frog"], 1, "default")]
    assert (found.value, found.n) == (round(2 / 3, 5), 3)
    assert found.note == "1 by their words, 1 by the scores of the image"
    assert set(found.weights) == {"generator", "guide", "judge"}


def test_the_committed_prompts():
    """100, each once, and no name of an object that the generator draws."""
    prompts = eyes.lines(doubts.UNKNOWN)
    assert len({*prompts}) == len(prompts) == 100
    things = set(known.things())
    said = [" ".join(w for w in known.split(p) if w not in known.ARTICLES) for p in prompts]
    assert not things & {*said}


def test_pairs_are_drawn_and_counted(tmp_path, capsys):
    """Left and right by chance; both have the same map and the same noise."""
    eyes.pairs(tmp_path, "1:1", "1:3", count=4)
    key = json.loads((tmp_path / "key.json").read_text())
    assert sorted(key) == ["000", "001", "002", "003"]
    assert {row["A"] for row in key.values()} == {"1:1", "1:3"}
    image = Image.open(tmp_path / "000.png")
    left, right = (image.crop((x, 0, x + 256, 256)).tobytes() for x in (0, 296))
    assert left != right
    ours = {n: "A" if row["A"] == "1:3" else "B" for n, row in key.items()}
    lines = [f"{n}\t{said if n != '003' else '='}" for n, said in ours.items()]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    eyes.preferred(tmp_path)
    assert capsys.readouterr().out == "1:3: 3, neither: 1\n"
    (tmp_path / "b.tsv").write_text("000\tC")
    with pytest.raises(UsageError, match="'C' is none of"):
        eyes.preferred(tmp_path)


def test_the_same_settings_draw_the_same_pair(tmp_path):
    eyes.pairs(tmp_path, "1:2", "1:2", count=1)
    image = Image.open(tmp_path / "000.png")
    assert image.crop((0, 0, 256, 256)).tobytes() == image.crop((296, 0, 552, 256)).tobytes()
