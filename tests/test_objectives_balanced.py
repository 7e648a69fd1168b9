"""Balanced: its gradient is the hand-computed one, image by image."""

from __future__ import annotations

import pytest
import torch
from objective_checks import check_rows, generators, gradient_of, images
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import UsageError
from clipguide.objectives import (
    Balanced,
    Nothing,
    Objective,
    Palette,
    Range,
    Scheduled,
    Similarity,
    TotalVariation,
)
from clipguide.views import Cutouts


@pytest.fixture(scope="module")
def clip64(clip_folder):
    return load_clip(str(clip_folder), dtype="float64")


@pytest.fixture(scope="module")
def judge64(judge_folder):
    return load_clip(str(judge_folder), dtype="float64")


def rms(x_B3HW):
    return torch.stack([x.square().mean().sqrt() for x in x_B3HW])


def by_hand(objectives, weights, image):
    """Σ w·g / rms(g) · mean rms, an image at a time."""
    gradients = [gradient_of(objective, image) for objective in objectives]
    rows = []
    for i in range(len(image)):
        sizes = [float(rms(g)[i]) for g in gradients]
        pulling = [size for size in sizes if size > 0]
        mean = sum(pulling) / len(pulling)
        rows.append(
            sum(
                weight * mean / size * g[i]
                for weight, size, g in zip(weights, sizes, gradients)
                if size > 0
            )
        )
    return torch.stack(rows)


def test_two_clips(clip64, judge64):
    """Each pulls with the same rms, in every image."""
    one = Similarity(clip64, "a red fox", views=None)
    other = Similarity(judge64, "a red fox", views=None, kind="dot")
    image = images()
    gradient = gradient_of(Balanced([one, other]), image)
    assert_close(gradient, by_hand([one, other], [1, 1], image))
    parts = [gradient_of(objective, image) for objective in (one, other)]
    for i in range(3):  # shares of the sum: the projections on both unit directions are equal
        units = [part[i] / part[i].norm() for part in parts]
        shares = [float((gradient[i] * unit).sum()) for unit in units]
        assert shares[0] == pytest.approx(shares[1])


class Louder(Objective):
    """An objective whose scale is its own, not a factor."""

    def __init__(self, objective):
        self.objective = objective

    def __call__(self, image_B3HW, generators=None):
        return self.objective(image_B3HW, generators)


def test_scale_of_a_loss_does_not_matter(clip64):
    one, other = Similarity(clip64, "a red fox", views=None), TotalVariation()
    image = images()
    plain = gradient_of(Balanced([one, other]), image)
    scaled = gradient_of(Balanced([Louder(100 * one), other]), image)
    for i in range(3):  # the same direction; the mean rms is another
        assert_close(plain[i] / plain[i].norm(), scaled[i] / scaled[i].norm())


def test_a_factor_is_a_weight(clip64):
    one, other, third = (
        Similarity(clip64, "a fox", views=None),
        TotalVariation(),
        Palette(["#000000"]),
    )
    image = images()
    gradient = gradient_of(Balanced([one, 0.5 * other, third * -2 * 0.125]), image)
    assert_close(gradient, by_hand([one, other, third], [1, 0.5, -0.25], image))


def test_value_and_upstream(clip64):
    """The value is the plain sum; a factor after it scales the gradient, per image."""
    one, other = Similarity(clip64, "a fox", views=None), 0.3 * TotalVariation()
    image = images()
    balanced = Balanced([one, other])
    assert_close(balanced(image), one(image) + other(image))
    with torch.no_grad():
        assert_close(balanced(image), one(image) + other(image))
    gradient = gradient_of(balanced, image)
    assert_close(gradient_of(3 * balanced + Range(), image), 3 * gradient)
    x = image.clone().requires_grad_()
    weight_B = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    (weighted,) = torch.autograd.grad((weight_B * balanced(x)).sum(), x)
    assert_close(weighted, weight_B[:, None, None, None] * gradient)


def test_through_a_decoder(clip64):
    """The gradient at a latent is the decoder's, of the balanced one at the image."""
    balanced = Balanced([Similarity(clip64, "a fox", views=None), TotalVariation()])
    latent = images(size=9).requires_grad_()

    def decode(latent):
        return torch.nn.functional.interpolate(latent, scale_factor=4, mode="bilinear").sigmoid()

    with torch.inference_mode(False), torch.enable_grad():
        (gradient,) = torch.autograd.grad(balanced(decode(latent)).sum(), latent)
    image = decode(latent)
    (expected,) = torch.autograd.grad(image, latent, gradient_of(balanced, image))
    assert_close(gradient, expected)


def test_rows(clip64):
    views = Cutouts(number=2)
    check_rows(Balanced([Similarity(clip64, "a fox", views=views), TotalVariation()]), images())


def test_an_objective_without_a_gradient_adds_nothing(clip64):
    one, image = Similarity(clip64, "a fox", views=None), images()
    assert_close(gradient_of(Balanced([one, Range()]), image), gradient_of(one, image))
    image[1, 0, 0, 0] = 1.5  # now it has one, in the second image
    gradient = gradient_of(Balanced([one, Range()]), image)
    assert_close(gradient, by_hand([one, Range()], [1, 1], image))
    assert gradient_of(Balanced([Range()]), images()).count_nonzero() == 0


def test_nan_stays_in_its_image(clip64):
    image = images()
    image[1, 0, 3, 3] = torch.nan
    gradient = gradient_of(Balanced([Similarity(clip64, "a fox", views=None), Range()]), image)
    assert gradient[[0, 2]].isfinite().all() and gradient[1].isnan().any()


def test_nested_and_scheduled(clip64):
    one, other = Similarity(clip64, "a fox", views=None), TotalVariation()
    image = images()
    inner = Balanced([one, other])
    assert_close(
        gradient_of(Balanced([inner, 2 * other]), image), by_hand([inner, other], [1, 2], image)
    )
    balanced = Balanced([one, Scheduled(other, "0.5>1@0..0.5")])
    assert_close(gradient_of(balanced.at(0), image), by_hand([one, other], [1, 0.5], image))
    assert_close(gradient_of(balanced.at(0.5), image), by_hand([one, other], [1, 1], image))
    assert_close(gradient_of(balanced.at(0.75), image), gradient_of(one, image))
    assert isinstance(Balanced([Scheduled(one, 0)]).at(0.5), Nothing)
    assert [type(leaf) for _, leaf in balanced.terms()] == [Similarity, TotalVariation]


def test_generators_are_drawn_from_in_order(clip64):
    views = Cutouts(number=2)
    one, other = (Similarity(clip64, text, views=views) for text in ("a fox", "an owl"))
    image = images(1)
    assert_close(Balanced([one, other])(image, generators(5)), (one + other)(image, generators(5)))


def test_bad_input():
    with pytest.raises(UsageError, match="nothing to balance"):
        Balanced([])
    with pytest.raises(UsageError, match="weight 0"):
        Balanced([0 * TotalVariation(), Range() * 0.0])
