"""Views repeat, do not depend on the batch, and can be differentiated through."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.views import Cutouts


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def image(seed: int = 0, height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_shape_and_order():
    views = Cutouts(number=4)(image(), generators(1, 2, 3), size=24)
    assert views.shape == (3 * 5, 3, 24, 24)
    alone = Cutouts(number=0)(image(), generators(1, 2, 3), size=24)
    assert torch.equal(views[::5], alone)  # the whole image first, whatever the generator
    assert Cutouts(number=4, whole=False)(image(), generators(1, 2, 3), size=24).shape[0] == 12


def test_same_seed_same_bits_whatever_ran_before():
    first = Cutouts()(image(), generators(1, 2, 3), size=24)
    torch.rand(100)
    assert torch.equal(Cutouts()(image(), generators(1, 2, 3), size=24), first)
    assert not torch.equal(Cutouts()(image(), generators(1, 2, 4), size=24), first)


def test_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    Cutouts()(image(), generators(1, 2, 3), size=24)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batch_equals_single():
    batch = Cutouts()(image(), generators(1, 2, 3), size=24).unflatten(0, (3, 5))
    for i, seed in enumerate((1, 2, 3)):
        alone = Cutouts()(image()[i : i + 1], generators(seed), size=24)
        assert torch.equal(batch[i], alone)


def test_generators_go_on():
    """The next draw differs, and is that of one generator drawn from twice."""
    one = generators(5)
    first, second = (Cutouts()(image()[:1], one, size=24) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_crop_is_a_part_of_the_picture():
    """Without flip, jitter and noise, a crop of the output's own size is cut out bit by bit."""
    plain = Cutouts(number=6, size_range=(0.5, 0.5), flip=0, jitter=0, noise=0, whole=False)
    source = image()[:1]
    places = source[0].unfold(1, 20, 1).unfold(2, 20, 1)  # 3, tops, lefts, 20, 20
    tops = set()
    for view in plain(source, generators(3), size=20):
        hits = (places - view[:, None, None]).abs().amax((0, 3, 4)) < 1e-6
        assert hits.sum() == 1
        tops.add(hits.nonzero()[0].tolist()[0])
    assert len(tops) > 1


def test_flip_and_jitter_stay_in_bounds():
    mirrored = Cutouts(number=1, size_range=(1, 1), flip=1, jitter=0, noise=0, whole=False)
    square = image(height=24, width=24)[:1]
    assert_close(mirrored(square, generators(0), size=24)[0], square[0].flip(-1))
    jittered = Cutouts(number=50, size_range=(1, 1), flip=0, jitter=0.1, noise=0, whole=False)
    difference = jittered(square, generators(0), size=24) - square
    assert 0.05 < difference.abs().max() <= 0.1 + 0.1 * 0.5 + 1e-6
    assert (difference.mean((2, 3)) > 0).any() and (difference.mean((2, 3)) < 0).any()


def test_noise_has_its_deviation():
    noisy = Cutouts(number=20, size_range=(1, 1), flip=0, jitter=0, noise=0.05, whole=False)
    square = image(height=24, width=24)[:1]
    difference = noisy(square, generators(0), size=24) - square
    assert float(difference.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(difference.mean())) < 0.001


def test_gradient_by_finite_differences():
    source = image(height=12, width=15)[:1].double().requires_grad_()

    def weighted(x):
        views = Cutouts(number=2)(x, generators(4), size=8)
        return (views * torch.linspace(0, 1, views.numel()).view_as(views)).sum()

    assert torch.autograd.gradcheck(weighted, (source,))


@pytest.mark.parametrize("size", [7, 64])
def test_any_size(size):
    views = Cutouts(number=3)(image(height=9, width=5), generators(1, 2, 3), size=size)
    assert views.shape[-2:] == (size, size)
    assert views.isfinite().all()


def test_settings_out_of_range():
    with pytest.raises(UsageError, match="at least one view"):
        Cutouts(number=0, whole=False)
    for size_range in [(0, 1), (0.5, 1.5), (0.9, 0.2), (float("nan"), 1)]:
        with pytest.raises(UsageError, match="size_range"):
            Cutouts(size_range=size_range)
    with pytest.raises(ClipguideError, match="3 images need as many generators, not 1"):
        Cutouts()(image(), generators(1), size=24)
