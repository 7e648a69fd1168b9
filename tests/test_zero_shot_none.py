"""None of these: its score against a softmax, thresholds by counting, what counts as a label's kin,
and that the embedded CLIP tells images of the labels from others."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clipguide import images, load_clip
from clipguide.errors import ClipguideWarning, UsageError
from clipguide.prompts import read_lines
from clipguide.zero_shot import NONE, Classifier, NoneOfThese
from clipguide.zero_shot.none import HERE, evidence, interpolate, unlike_each

PICTURES = Path(__file__).parent.parent / "samples" / "pictures"
WORDS = ["fox", "red fox", "owl", "car", "cup", "tree", "house", "sea"]


def vectors(count: int, width: int = 24, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=random), dim=-1)


@pytest.fixture
def some(clip):
    return NoneOfThese(clip, [["fox"], ["gnu", "antelope"]], background=WORDS)


def test_the_score_is_the_log_odds_of_one_softmax(clip, some):
    image_BD = vectors(6)
    texts = ["fox", "gnu", "antelope", *some.background]
    logit_BT = clip.logit_scale * image_BD @ clip.encode_text(texts).T
    share_B = logit_BT.double().softmax(1)[:, :3].sum(1)
    assert_close(some.score(image_BD).double(), (share_B / (1 - share_B)).log(), atol=1e-4, rtol=0)


def test_a_high_sharpness_is_the_margin_of_the_best():
    random = torch.Generator().manual_seed(0)
    label_BN, word_BW = (torch.randn(9, n, generator=random).double() for n in (3, 7))
    margin_B = label_BN.max(1).values - word_BW.max(1).values
    assert_close(evidence(label_BN, word_BW, sharpness=1e4), margin_B, atol=1e-3, rtol=0)


def test_a_label_more_is_never_less_evidence_and_a_word_more_never_more():
    random = torch.Generator().manual_seed(0)
    label_BN, word_BW = (torch.randn(9, n, generator=random) for n in (3, 7))
    less_B = evidence(label_BN[:, :2], word_BW)
    assert (evidence(label_BN, word_BW) > less_B).all()
    assert (evidence(label_BN[:, :2], word_BW[:, :6]) > less_B).all()


def test_the_background_has_no_kin_of_a_label(some):
    assert "fox" not in some.background and "red fox" not in some.background
    assert {"owl", "car"} & set(some.background)


def test_kin_by_words_and_by_nearness():
    words = ["red fox", "foxes", "owls", "The Owl", "hot dog stand", "tree", "a-b"]
    word_WD = torch.eye(7, 9)
    word_WD[5, 8], word_WD[6, 8] = 0.3, 0.5
    word_WD = F.normalize(word_WD, dim=1)
    label_ND = F.normalize(torch.stack([word_WD[4] + 0.01 * word_WD[5], torch.eye(9)[7]]), dim=1)
    other_NW = unlike_each(word_WD, label_ND, words, ["anything", "an owl"])
    assert other_NW[0].tolist() == [True, True, True, True, False, True, True]  # by nearness
    assert other_NW[1].tolist() == [True, True, False, False, True, True, True]  # by words


def test_labels_that_leave_nothing(clip):
    with pytest.raises(UsageError, match="leave no word of the background"):
        NoneOfThese(clip, [["fox"]], background=["red fox", "fox"])


def test_the_list_of_words():
    words = read_lines(HERE / "background.txt", what="words", comments=True)
    assert 1500 < len(words) < 2000 and words == sorted(set(words))


@pytest.mark.parametrize(("count", "place"), [(19, 1), (39, 2), (100, 5), (199, 10)])
def test_the_threshold_is_a_score_that_so_many_lie_under(some, count, place):
    inside_BD = vectors(count, seed=count)
    threshold = some.calibrate(inside_BD)
    lower = int((some.score(inside_BD) < threshold).sum())
    assert lower == place - 1 and some.calibrated and some.threshold == threshold
    assert int(some.decide(inside_BD).sum()) == place - 1
    assert some.calibrate(inside_BD, false=0.5) > threshold


def test_calibrated_it_turns_away_what_it_promises(some):
    """On average over draws no more than 5 % of new images alike, and hardly less."""
    turned = []
    for seed in range(200):
        some.calibrate(vectors(59, seed=seed))
        turned.append(some.decide(vectors(200, seed=1000 + seed)).double().mean().item())
    assert 0.04 < sum(turned) / len(turned) <= 0.055


def test_few_pictures_to_calibrate_by(some):
    inside_BD = vectors(7)
    with pytest.warns(ClipguideWarning, match="7 images are few to calibrate by: 19 promise"):
        threshold = some.calibrate(inside_BD)
    assert threshold == some.score(inside_BD).min()
    for bad, false in ((inside_BD[:0], 0.05), (inside_BD, 0.0), (inside_BD, 1.0)):
        with pytest.raises(UsageError, match="images that show the labels"):
            some.calibrate(bad, false=false)


def test_another_clip_is_not_calibrated_and_says_so(some):
    assert not some.calibrated and some.threshold == 0
    with pytest.warns(ClipguideWarning, match="not calibrated for the CLIP"):
        none_B = some.decide(vectors(5))
    assert torch.equal(none_B, some.score(vectors(5)) < 0)


def test_a_picture_that_is_turned_away_has_no_label(clip):
    classifier = Classifier(clip, ["fox", "gnu"], templates="plain", none=True)
    image_BD = vectors(5)
    score_B = classifier.none.score(image_BD)
    classifier.none.threshold, classifier.none.calibrated = float(score_B.median()), True
    found = classifier.name(image_BD, top=2)
    for row, score in zip(found, score_B):
        turned = score < classifier.none.threshold
        assert (row[0].label == NONE) == turned and len(row) == (1 if turned else 2)


def test_thresholds_between_the_measured_ones():
    table = {5: -4.0, 20: -2.0}
    assert interpolate(table, 1) == interpolate(table, 5) == -4
    assert interpolate(table, 20) == interpolate(table, 500) == -2
    assert math.isclose(interpolate(table, 10), -3)


def test_what_is_shipped_is_of_the_embedded_models():
    """By fingerprint: new weights want new thresholds, benchmarks/none_of_these.py none --ship."""
    shipped = json.loads((HERE / "none.json").read_text())
    for name in ("mini", "mini-judge"):
        table = shipped[load_clip(name).fingerprint]
        assert table["clip"] == name
        assert list(table["thresholds"]) == ["5", "20", "50"]


def test_mini_turns_other_pictures_away():
    """Of forty drawings, five of them named: none of the five, and most of the others. (Measured
    on more: benchmarks/none_of_these.json.)"""
    clip, paths = load_clip(), sorted(PICTURES.glob("*.png"))
    names = [path.stem.replace("-", " ") for path in paths]
    image_BD = clip.encode_pictures([images.load(path) for path in paths])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = Classifier(clip, names[::8], none=True)
        none_B, score_B = classifier.none.decide(image_BD), classifier.none.score(image_BD)
    inside_B = torch.arange(len(names)) % 8 == 0
    assert not none_B[inside_B].any()
    assert none_B[~inside_B].double().mean() >= 0.6
    ordered = score_B[inside_B, None] > score_B[~inside_B]
    assert ordered.double().mean() >= 0.97
