"""Regions: what is seen of the image, where the gradient goes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from objective_checks import check_gradient, check_rows, generators, gradient_of, images
from PIL import Image
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import UsageError
from clipguide.objectives import (
    Nothing,
    Objective,
    Range,
    Region,
    Scheduled,
    Similarity,
    TotalVariation,
    regions,
)
from clipguide.views import Cutouts

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)


@pytest.fixture(scope="module")
def clip64(clip_folder):
    return load_clip(str(clip_folder), dtype="float64")


def disc(size: int = 36) -> torch.Tensor:
    """A soft mask, 1 x size x size."""
    along = torch.linspace(-1, 1, size)
    radius = (along[:, None] ** 2 + along**2).sqrt()
    return ((0.8 - radius) * 4).clamp(0, 1)[None]


class Seen(Objective):
    """Keeps what it was shown; its loss is the sum of it."""

    def __call__(self, image_B3HW, generators=None):
        self.image = image_B3HW
        return image_B3HW.flatten(1).sum(1)


MAKE = {
    "box": lambda clip: Region(Similarity(clip, "a fox", views=None), (0.1, 0.2, 0.7, 0.9)),
    "mask": lambda clip: Region(Similarity(clip, "a fox", views=Cutouts(number=2)), disc()),
    "regions": lambda clip: regions(
        clip,
        [(LEFT, "a red fox"), (disc(20), "an owl | blur:-0.5")],
        background="a forest",
        weights=[2, 1, -0.5],
        views=Cutouts(number=1),
    ),
}


@pytest.mark.parametrize("name", MAKE)
def test_gradient_and_rows(clip64, name):
    check_gradient(MAKE[name](clip64), images())
    check_rows(MAKE[name](clip64), images())


def test_a_box_is_cut_out():
    image, seen = torch.rand(2, 3, 10, 20), Seen()
    Region(seen, (0.25, 0.1, 0.5, 0.8))(image)
    assert torch.equal(seen.image, image[..., 1:8, 5:10])
    Region(seen, (0, 0, 1, 1))(image)
    assert torch.equal(seen.image, image)


@pytest.mark.parametrize("box", [(0, 0, 1e-6, 1e-6), (1 - 1e-6, 0.5, 1, 0.50001)])
def test_a_box_has_a_pixel(box):
    seen = Seen()
    Region(seen, box)(torch.rand(1, 3, 10, 20))
    assert seen.image.shape == (1, 3, 1, 1)


def test_two_halves_are_the_whole():
    image = images(2, size=35)  # odd: every pixel belongs to one half
    halves = Region(Seen(), LEFT) + Region(Seen(), RIGHT)
    assert_close(halves(image), Seen()(image))


def test_a_mask_is_grey_outside():
    image, seen, mask = images(2, size=8), Seen(), torch.zeros(8, 8)
    mask[2:5, 3:8], mask[3, 4] = 1, 0.25
    Region(seen, mask)(image)
    expected = image[..., 2:5, 3:8].clone()
    expected[..., 1, 1] = 0.5 + 0.25 * (expected[..., 1, 1] - 0.5)
    assert_close(seen.image, expected)
    gradient = gradient_of(Region(Seen(), mask), image)
    assert_close(gradient, mask.double().expand_as(gradient))  # the pull is the mask


def test_masks_of_every_make():
    image, mask = images(1, size=16), (disc(16) > 0.5).float()
    expected = Region(Seen(), mask)(image)
    picture = Image.fromarray((mask[0].numpy() * 255).astype(np.uint8))
    for other in (mask[0], mask.bool(), picture, picture.convert("1"), picture.convert("RGB")):
        assert_close(Region(Seen(), other)(image), expected)
    doubled = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    seen = gradient_of(Region(Seen(), doubled), image)[0, 0]
    assert (seen - mask[0]).abs().mean() < 0.06  # any size is resized, antialiased


def test_gradient_stays_in_its_region(clip64):
    gradient = gradient_of(Region(Similarity(clip64, "a fox", views=None), LEFT), images())
    assert gradient[..., 18:].count_nonzero() == 0
    assert (gradient[..., :18] != 0).float().mean() > 0.9


def test_regions_by_their_formula(clip64):
    """Σ w·loss / Σ |w|, each seeing its own part alone; the background sees what is left."""
    image = images()

    def of(prompt, part):
        return Similarity(clip64, prompt, views=None)(part)

    left, right = image[..., :18], image[..., 18:]
    two = regions(clip64, [(LEFT, "a fox"), (RIGHT, "an owl")], views=None)
    assert_close(two(image), (of("a fox", left) + of("an owl", right)) / 2)
    one = regions(clip64, [(LEFT, "a fox")], background="sky", weights=[3, -1], views=None)
    assert_close(one(image), (3 * of("a fox", left) - of("sky", right)) / 4)
    box = regions(clip64, [((0, 0, 0.5, 0.5), "a fox")], background="sky", views=None)
    rest = image.clone()
    rest[..., :18, :18] = 0.5
    assert_close(box(image), (of("a fox", image[..., :18, :18]) + of("sky", rest)) / 2)
    only = regions(clip64, [], background="sky", views=None)
    assert_close(only(image), of("sky", image))


def test_lists_of_prompts(clip64):
    image = images(2)
    both = regions(clip64, [(LEFT, ["a fox", "an owl"])], views=None)(image)
    for i, prompt in enumerate(("a fox", "an owl")):
        alone = regions(clip64, [(LEFT, prompt)], views=None)(image[i : i + 1])
        assert_close(both[i], alone[0])


def test_composition(clip64):
    region = Region(Scheduled(Similarity(clip64, "a fox", views=None), "1>0"), LEFT)
    whole = region + 0.1 * TotalVariation()
    assert [type(leaf) for _, leaf in whole.terms()] == [Similarity, TotalVariation]
    plain = Region(Similarity(clip64, "a fox", views=None), LEFT)
    assert_close(region.at(0.25)(images()), 0.75 * plain(images()))
    assert isinstance(region.at(1), Nothing)
    assert [type(leaf) for _, leaf in whole.at(1).terms()] == [TotalVariation]


def test_generators_are_used_in_turn(clip64):
    views, image = Cutouts(number=1), images(1)
    pair = regions(clip64, [(LEFT, "a fox"), (RIGHT, "a fox")], views=views)
    one = generators(3)
    first = Region(Similarity(clip64, "a fox", views=views), LEFT)(image, one)
    second = Region(Similarity(clip64, "a fox", views=views), RIGHT)(image, one)
    assert_close(pair(image, generators(3)), (first + second) / 2)


@pytest.mark.parametrize(
    ("area", "message"),
    [
        ((-0.1, 0, 1, 1), "is outside of the image"),
        ((0, 0, 1.1, 1), "is outside of the image"),
        ((0, 0, 256, 256), "is outside of the image"),
        ((0, 0, float("nan"), 1), "is outside of the image"),
        ((0.5, 0, 0.5, 1), "is empty: x0 must be below x1"),
        ((0, 0.9, 1, 0.1), "is empty"),
        ((0, 0, 1), "is a box"),
        ("left", "is a box"),
        (None, "is a box"),
        (torch.ones(3, 5, 5), "1 x H x W, or H x W, not 3 x 5 x 5"),
        (torch.ones(1, 1, 5, 5), "not 1 x 1 x 5 x 5"),
        (torch.ones(5), "not 5"),
        (torch.ones(1, 0, 5), "not 1 x 0 x 5"),
        (torch.full((5, 5), 255.0), r"lie in \[0, 1\]"),
        (torch.full((5, 5), torch.nan), r"lie in \[0, 1\]"),
        (torch.zeros(1, 5, 5), "is empty"),
        (Image.new("L", (5, 5)), "is empty"),
    ],
)
def test_bad_areas(area, message):
    with pytest.raises(UsageError, match=message):
        Region(Range(), area)


def test_a_mask_that_vanishes():
    mask = torch.zeros(1000, 1000)
    mask[500, 500] = 1
    with pytest.raises(UsageError, match="covers no pixel of 8x6 ones"):
        Region(Range(), mask)(torch.rand(1, 3, 6, 8))


def test_bad_regions(clip):
    image = images(1).float()
    with pytest.raises(UsageError, match="no regions"):
        regions(clip, [])
    with pytest.raises(UsageError, match="2 regions need as many weights, not 1"):
        regions(clip, [(LEFT, "a")], background="b", weights=[1])
    for weights in ([0, 0], [1, float("nan")], [float("inf"), 1]):
        with pytest.raises(UsageError, match="finite, and not all 0"):
            regions(clip, [(LEFT, "a"), (RIGHT, "b")], weights=weights)
    covered = regions(clip, [(LEFT, "a"), (RIGHT, "b")], background="c")
    with pytest.raises(UsageError, match="no background"):
        covered(image)
    with pytest.raises(UsageError, match="'dott'. Did you mean dot"):
        regions(clip, [(LEFT, "a")], kind="dott")
    with pytest.raises(UsageError, match="takes a source"):
        regions(clip, [(LEFT, "a")], kind="directional")
