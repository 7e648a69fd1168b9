"""Objectives: finite differences, batch against single, composition, known values."""

from __future__ import annotations

import math

import pytest
import torch
from objective_checks import check_gradient, check_rows, generators, images
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, UsageError
from clipguide.images import to_pil
from clipguide.objectives import (
    Nothing,
    Objective,
    Range,
    Scheduled,
    Similarity,
    TotalVariation,
    dot,
    spherical,
)
from clipguide.views import Cutouts

PROMPTS = ["a red fox", "a zebra | stripes:0.5 | blur:-1", "xylophone:2 | fox:-0.5"]


@pytest.fixture(scope="module")
def clip64(clip_folder):
    return load_clip(str(clip_folder), dtype="float64")


def objectives(clip, prompts):
    return {
        "spherical": Similarity(clip, prompts, views=None),
        "dot": Similarity(clip, prompts, views=None, kind="dot"),
        "views": Similarity(clip, prompts, views=Cutouts(number=2)),
        "total variation": TotalVariation(),
        "range": Range(),
        "sum": Similarity(clip, prompts, views=Cutouts(number=1))
        + 0.3 * TotalVariation()
        + Range() * 2,
    }


NAMES = ["spherical", "dot", "views", "total variation", "range", "sum"]


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(clip64, name):
    image = images(low=-0.3, high=1.3) if name == "range" else images()
    check_gradient(objectives(clip64, PROMPTS)[name], image)


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_single(clip64, name):
    image = images(low=-0.3, high=1.3) if name == "range" else images()
    singles = [objectives(clip64, prompt)[name] for prompt in PROMPTS]
    check_rows(objectives(clip64, PROMPTS)[name], image, singles)


def test_one_prompt_for_all_and_k_images_a_prompt(clip64):
    image = images(6)
    one = Similarity(clip64, "a red fox", views=None)(image)
    assert_close(one, Similarity(clip64, ["a red fox"] * 6, views=None)(image))
    two = Similarity(clip64, ["a red fox", "a zebra"], views=None)(image)
    assert_close(two[:3], one[:3])
    assert_close(two[3:], Similarity(clip64, "a zebra", views=None)(image[3:]))
    with pytest.raises(ClipguideError, match="4 prompts do not divide 6 images"):
        Similarity(clip64, ["a", "b", "c", "d"])(image)
    with pytest.raises(ClipguideError, match="no prompts"):
        Similarity(clip64, [])


def test_weights(clip64):
    """Σ w·d / Σ |w|, written out."""
    image = images(1)
    parts = {text: Similarity(clip64, text, views=None)(image) for text in ("fox", "owl")}
    mixed = Similarity(clip64, "fox:3 | owl:-1", views=None)(image)
    assert_close(mixed, (3 * parts["fox"] - parts["owl"]) / 4)
    assert_close(Similarity(clip64, "fox:-2", views=None)(image), -parts["fox"])


def test_distances():
    """Half the squared angle, and 1 − cos; finite gradients where vectors meet or oppose."""
    for angle in (0.0, 0.3, math.pi / 2, 3.0, math.pi):
        unit = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        text = torch.tensor([1.0, 0.0], dtype=torch.float64)
        unit.requires_grad_()
        assert spherical(unit, text).item() == pytest.approx(angle**2 / 2, abs=4e-3)
        assert dot(unit, text).item() == pytest.approx(1 - math.cos(angle))
        (gradient,) = torch.autograd.grad(spherical(unit, text), unit)
        assert gradient.isfinite().all()


def test_known_values():
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert TotalVariation()(flat).item() == 0
    ramp = torch.arange(8).float().expand(1, 3, 8, 8) / 10
    assert TotalVariation()(ramp).item() == pytest.approx(0.01)
    assert Range()(flat).item() == 0
    assert Range()(flat + 1).item() == pytest.approx(0.25)
    assert Range()(flat - 1).item() == pytest.approx(0.25)


def test_score_is_the_cosine(clip):
    image = images(2).float()
    text = clip.encode_text(["a red fox"])
    similarity = Similarity(clip, "a red fox")
    assert_close(similarity.score(image), clip.similarity(clip.encode_image(image), text)[:, 0])
    pictures = to_pil(image)
    assert_close(
        similarity.score_pictures(pictures), (clip.encode_pictures(pictures) @ text.T)[:, 0]
    )
    assert_close(similarity.score(image), similarity.score_pictures(pictures), atol=0.01, rtol=0)
    repelled = Similarity(clip, "a red fox | owl:-1").score(image)
    assert_close(repelled, (similarity.score(image) - Similarity(clip, "owl").score(image)) / 2)


def test_without_generators_a_call_repeats(clip):
    objective = Similarity(clip, "a red fox")
    first = objective(images(2).float())
    assert torch.equal(objective(images(2).float()), first)


def test_text_bits_do_not_depend_on_neighbours(clip):
    alone = Similarity(clip, "a red fox")._text_BPD
    among = Similarity(clip, ["a zebra", "a red fox", "a"])._text_BPD
    assert torch.equal(alone[0, 0], among[1, 0])


def test_padding_changes_no_bit(clip):
    """A prompt beside one of more parts: value and gradient, as alone with the same batch shape."""
    short, long = "a fox:2 | owl | blur:-0.3", "a | b | c | d | e"
    image = images(2).float().requires_grad_()
    results = []
    for prompts in ([short, short], [short, long]):
        loss_B = Similarity(clip, prompts)(image, generators(1, 2))
        results.append((loss_B[0], torch.autograd.grad(loss_B[0], image)[0]))
        results[-1] += (Similarity(clip, prompts).score(image)[0],)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_composition(clip):
    similarity = Similarity(clip, "a red fox")
    whole = 2 * similarity + TotalVariation() * 0.5
    assert [type(leaf).__name__ for _, leaf in whole.terms()] == ["Similarity", "TotalVariation"]
    image = images(2).float()
    assert_close(whole(image), 2 * similarity(image) + 0.5 * TotalVariation()(image))
    with pytest.raises(TypeError):
        similarity + 1
    for factor in (math.nan, math.inf):
        with pytest.raises(UsageError, match="finite number"):
            factor * similarity


class Steps(Objective):
    """Counts how often it is asked."""

    asked = 0

    def __call__(self, image_B3HW, generators=None):
        Steps.asked += 1
        return image_B3HW.flatten(1).mean(1)


def test_schedules():
    """At each progress a scheduled objective is its weight times what it schedules."""
    image = images(2)
    total, steps = TotalVariation(), Steps()
    whole = 2 * Scheduled(steps, "0.5>1@0..0.5") + Scheduled(total, lambda noise: noise) + Range()
    value, smooth = steps(image), total(image)
    assert_close(whole.at(0)(image), 2 * 0.5 * value + smooth)
    assert_close(whole.at(0.25)(image), 2 * 0.75 * value + 0.75 * smooth)
    assert_close(whole.at(0.5)(image), 2 * value + 0.5 * smooth)
    asked = Steps.asked
    assert_close(whole.at(0.75)(image), 0.25 * smooth)
    assert Steps.asked == asked  # where the weight is 0, nothing is computed
    names = [type(leaf).__name__ for _, leaf in whole.terms()]
    assert names == ["Steps", "TotalVariation", "Range"]
    assert [type(leaf).__name__ for _, leaf in whole.at(1).terms()] == ["Range"]
    with pytest.raises(ClipguideError, match="only at a progress"):
        whole(image)
    with pytest.raises(UsageError, match="no piece of a schedule"):
        Scheduled(total, "often")


def test_schedules_nest():
    image = images(2)
    twice = Scheduled(Scheduled(TotalVariation(), (1, 0)), 0.5)
    assert_close(twice.at(0.25)(image), 0.5 * 0.75 * TotalVariation()(image))
    assert isinstance(twice.at(1), Nothing)
    plain = TotalVariation()
    assert plain.at(0.3) is plain


def test_nothing():
    image = images(2).requires_grad_()
    nothing = Nothing()
    loss_B = nothing(image)
    assert torch.equal(loss_B, torch.zeros(2).double())
    assert torch.autograd.grad(loss_B.sum(), image)[0].count_nonzero() == 0
    assert list(nothing.terms()) == []
    total = TotalVariation()
    assert (nothing + total) is total and (total + nothing) is total
    assert isinstance(2 * nothing, Nothing) and isinstance(nothing + nothing, Nothing)
