"""Zero-shot: class vectors against clip_benchmark's recipe, probabilities, labels, templates, the
table of confusions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clipguide import images, load_clip
from clipguide.errors import UsageError
from clipguide.zero_shot import (
    NONE,
    Classifier,
    confusion,
    default_templates,
    draw,
    figures,
    read_labels,
    templates,
)

pytestmark = pytest.mark.filterwarnings("ignore:The CLIP .* reads 16 tokens")  # the tiny one
PICTURES = Path(__file__).parent.parent / "samples" / "pictures"
LABELS = ["fox", "owl", "red car", "cup"]


def vectors(count: int, width: int = 24, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=random), dim=-1)


@pytest.mark.parametrize("name", ["default", "plain", "seven"])
def test_class_vectors_are_those_of_clip_benchmark(clip, name):
    """Its loop: encode the filled templates, normalise each, mean, divide by the norm."""
    classifier = Classifier(clip, LABELS, templates=name)
    weights = []
    for label in LABELS:
        texts = [template.format(label) for template in templates(name)]
        with torch.no_grad():
            embeddings = clip._model.encode_text(clip._tokenizer(texts))
        mean = (embeddings / embeddings.norm(dim=-1, keepdim=True)).mean(0)
        weights.append(mean / mean.norm())
    assert_close(classifier.text_ND, torch.stack(weights), atol=1e-6, rtol=0)


def test_logits_and_probabilities(clip):
    classifier, image_BD = Classifier(clip, LABELS, templates="plain"), vectors(5)
    cosine = image_BD.double().numpy() @ classifier.text_ND.double().numpy().T
    power = np.exp(clip.logit_scale * cosine)
    expected = power / power.sum(1, keepdims=True)
    assert_close(classifier.probabilities(image_BD).double().numpy(), expected, atol=1e-5, rtol=0)
    assert_close(classifier.logits(image_BD).double().numpy(), clip.logit_scale * cosine,
                 atol=1e-4, rtol=0)  # fmt: skip


def test_a_model_with_a_bias_gives_sigmoids(clip, monkeypatch):
    monkeypatch.setattr(clip, "logit_bias", -3.0)
    classifier, image_BD = Classifier(clip, LABELS, templates="plain"), vectors(5)
    cosine = image_BD @ classifier.text_ND.T
    expected = 1 / (1 + torch.exp(3.0 - clip.logit_scale * cosine))
    assert_close(classifier.probabilities(image_BD), expected, atol=1e-5, rtol=0)


def test_names_are_the_nearest_best_first(clip):
    classifier = Classifier(clip, LABELS, templates="plain")
    found = classifier.name(classifier.text_ND, top=9)  # the labels' own vectors as images
    assert [row[0].label for row in found] == LABELS
    assert all(len(row) == len(LABELS) for row in found)
    for row in found:
        assert math.isclose(row[0].cosine, 1, abs_tol=1e-5)
        assert [n.probability for n in row] == sorted((n.probability for n in row), reverse=True)
    with pytest.raises(UsageError, match="at least 1, not 0"):
        classifier.name(classifier.text_ND, top=0)


def test_batch_equals_single(clip):
    classifier, image_BD = Classifier(clip, LABELS, templates="plain"), vectors(5)
    singly = torch.cat([classifier.probabilities(row) for row in image_BD.split(1)])
    assert_close(classifier.probabilities(image_BD), singly)


def test_synonyms_are_averaged_into_their_label(clip):
    classifier = Classifier(clip, {"fox": ["vixen"], "owl": []}, templates="plain")
    fox, vixen, owl = clip.encode_text(["fox", "vixen", "owl"])
    assert_close(classifier.text_ND[0], F.normalize((fox + vixen) / 2, dim=0))
    assert_close(classifier.text_ND[1], owl)
    assert classifier.labels == ("fox", "owl")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "There are no labels"),
        (["fox", "owl", "fox", "owl"], r"repeat: 'fox', 'owl'\. Give each once"),
        (["fox", " "], "A label is empty"),
        (["fox"], "'fox' as the only label there is nothing to choose"),
        ("fox", "a list of strings"),
        (["fox", "\udcff"], "not valid text"),
    ],
)
def test_labels_that_make_no_sense(clip, labels, message):
    with pytest.raises(UsageError, match=message):
        Classifier(clip, labels)


def test_one_label_and_none(clip):
    assert Classifier(clip, ["fox"], templates="plain", none=True).labels == ("fox",)


def test_lists_of_labels(tmp_path):
    assert list(read_labels("red fox, owl,cup")) == ["red fox", "owl", "cup"]
    assert list(read_labels("fox")) == ["fox"]
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeff# animals\nrenard: fox,  vixen\n\nhibou\r\n狐\n".encode())
    assert read_labels(str(path)) == {
        "renard": ("renard", "fox", "vixen"),
        "hibou": ("hibou",),
        "狐": ("狐",),
    }
    assert read_labels(path) == read_labels(str(path))


def test_lists_that_cannot_be_read(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("fox\nhérisson\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"not UTF-8 text \(line 2\), perhaps latin-1"):
        read_labels(path)
    path.write_text("fox\nowl\nfox: vixen\n")
    with pytest.raises(UsageError, match="repeat: 'fox'"):
        read_labels(path)
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="There are no labels"):
        read_labels(path)
    for missing in ("missing.txt", tmp_path / "missing"):
        with pytest.raises(UsageError, match="There is no file of labels"):
            read_labels(missing)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_labels(tmp_path)


def test_templates_by_name_and_from_a_file(tmp_path):
    assert templates("plain") == ("{}",)
    assert templates("seven")[0] == "itap of a {}." and len(templates("seven")) == 7
    assert 20 <= len(templates("default")) <= 30
    assert len(set(templates("default"))) == len(templates("default"))
    path = tmp_path / "mine.txt"
    path.write_text("a woodcut of {}\n\n{} in the rain\n")
    assert templates(str(path)) == ("a woodcut of {}", "{} in the rain")
    assert templates("a woodcut of {}") == ("a woodcut of {}",)


@pytest.mark.parametrize("line", ["a photo", "{} and {}", "{label}", "{", "{0} {}"])
def test_templates_that_make_no_sense(tmp_path, line):
    path = tmp_path / "mine.txt"
    path.write_text(f"a fine {{}}\n{line}\n")
    with pytest.raises(UsageError, match="needs one {}"):
        templates(path)


def test_unknown_templates(tmp_path):
    with pytest.raises(UsageError, match="Did you mean seven"):
        templates("sevn")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="There are no templates"):
        templates(tmp_path / "empty.txt")


def test_a_label_with_braces_is_only_a_label(clip):
    assert Classifier(clip, ["{}", "{0.__class__}"]).labels == ("{}", "{0.__class__}")


def test_templates_by_default():
    assert default_templates("mini") == default_templates("mini-judge@cpu:bfloat16") == "plain"
    assert default_templates("mini+mini-judge") == "plain"
    assert default_templates("0.7*mini + 0.3*mini-judge@:bfloat16") == "plain"
    assert default_templates("mini+ViT-B-32/openai") == "default"


def test_mini_names_the_sample_pictures():
    """At least 39 of 40 by the plain names, and plain is the best of the templates for it."""
    clip, paths = load_clip(), sorted(PICTURES.glob("*.png"))
    names = [path.stem.replace("-", " ") for path in paths]
    image_BD = clip.encode_pictures([images.load(path) for path in paths])
    target_B = torch.arange(len(names))
    found = figures(Classifier(clip, names).probabilities(image_BD), target_B)
    assert found["top-1"] >= 39 / 40 and found["top-5"] == 1
    other = figures(Classifier(clip, names, templates="seven").probabilities(image_BD), target_B)
    assert other["top-1"] <= found["top-1"]


def test_figures_against_counting():
    random = torch.Generator().manual_seed(0)
    score_BN = torch.rand(60, 8, generator=random)
    target_B = torch.randint(0, 7, (60,), generator=random)  # the last class has no image
    order = score_BN.argsort(1, descending=True).tolist()
    hits = [row[0] == target for row, target in zip(order, target_B.tolist())]
    five = [target in row[:5] for row, target in zip(order, target_B.tolist())]
    recalls = [np.mean([h for h, t in zip(hits, target_B.tolist()) if t == n]) for n in range(7)]
    found = figures(score_BN, target_B)
    assert math.isclose(found["top-1"], np.mean(hits))
    assert math.isclose(found["top-5"], np.mean(five))
    assert math.isclose(found["mean recall"], np.mean(recalls))
    assert figures(score_BN, target_B, none_B=torch.ones(60).bool())["top-1"] == 0
    assert figures(torch.zeros(60, 8), target_B)["top-5"] == 0  # ties
    assert figures(score_BN * math.nan, target_B)["top-5"] == 0
    with pytest.raises(UsageError, match="no image to count"):
        figures(score_BN[:0], target_B[:0])


def test_confusions_are_counted():
    target, found = [0, 0, 1, 2, 2, 2], [0, 1, 1, 3, 2, 2]
    table = confusion(torch.tensor(target), torch.tensor(found), rows=3, columns=4)
    expected = torch.zeros(3, 4).long()
    for t, f in zip(target, found):
        expected[t, f] += 1
    assert torch.equal(table, expected)


def test_the_picture_of_confusions():
    """The cells of right names are the blue ones, and a full one is darker than half of one."""
    table = torch.tensor([[4, 0, 0], [2, 2, 0]])
    sheet = draw(table, ["fox", "owl"], ["fox", "owl", NONE])
    blank = draw(torch.zeros(2, 3).long(), ["fox", "owl"], ["fox", "owl", NONE])
    assert sheet.size == blank.size
    change = np.asarray(blank).astype(int) - np.asarray(sheet).astype(int)
    ys, xs = np.nonzero(change.any(-1))
    cells = {(y > (ys.min() + ys.max()) / 2, x > (xs.min() + xs.max()) / 2) for y, x in zip(ys, xs)}
    assert cells == {(False, False), (True, False), (True, True)}  # as the table, none in the third
    blue, red = (np.asarray(sheet).astype(int)[..., c] for c in (2, 0))
    assert ((blue - red) > 60).any() and ((red - blue) > 60).any()
    with pytest.raises(UsageError, match="holds 200 classes, not 201"):
        draw(torch.zeros(201, 201).long(), ["a"] * 201, ["a"] * 201)
    assert draw(torch.eye(200).long(), ["a"] * 200, ["a"] * 200).width > 1000
