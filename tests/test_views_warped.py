"""Warped views repeat, are warped as references say, do not alias and can be differentiated."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
import torch
import torch.nn.functional as F
from objective_checks import check_gradient, check_rows, generators, images
from torch.testing import assert_close
from torchvision.transforms.functional import perspective as torchvision_perspective

from clipguide import InitSimilarity, Similarity, warps
from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, UsageError
from clipguide.views import Cutouts, Warped
from clipguide.warps import PADDINGS

STILL = {"p": 0.0, "flip": 0.0, "noise": 0.0}
WILD = Warped(
    overview=1,
    inner=4,
    p=1,
    degrees=60,
    translate=0.2,
    scale=(0.5, 1.5),
    shear=20,
    perspective=0.6,
    brightness=0.2,
    contrast=0.2,
    saturation=0.5,
    hue=0.2,
    grey=0.3,
    erase=0.3,
    noise=0.1,
)
PRESETS = {"default": Warped(), "vqgan_clip": Warped.vqgan_clip(), "disco": Warped.disco()}


def image(seed: int = 0, height: int = 40, width: int = 56, number: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, 3, height, width, generator=generator, dtype=torch.float64)


def checkerboard(size: int) -> torch.Tensor:
    place = torch.arange(size)
    return ((place[:, None] + place) % 2).double().expand(1, 3, size, size)


def whole(view_3ss: torch.Tensor, matrix_33: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    """An image through one homography, at its own size."""
    filled_12 = torch.tensor([view_3ss.shape[1:]])
    return warps.warp(view_3ss[None], filled_12, matrix_33[None], padding)[0]


def affine(*, mirror=False, shear=0.0, scale=1.0, angle=0.0, shift=(0.0, 0.0)) -> torch.Tensor:
    """matrix_33 of one view."""
    return warps.affine(
        mirror_N=torch.tensor([mirror]),
        shear_N=torch.tensor([shear]).double(),
        scale_N=torch.tensor([scale]).double(),
        angle_N=torch.tensor([angle]).double(),
        shift_N2=torch.tensor([shift]).double(),
    )[0]


def recolour(view_N3ss: torch.Tensor, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    numbers = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    whole_N = torch.ones(len(view_N3ss), dtype=torch.float64)
    return warps.recolour(view_N3ss, **{f"{k}_N": v * whole_N for k, v in numbers.items()})


@pytest.mark.parametrize("views", [WILD, *PRESETS.values()], ids=["wild", *PRESETS])
def test_batch_equals_single_and_seed_repeats(views):
    """To the bit, with its gradient, whatever ran before; the global generator is left alone."""
    source = image().float().requires_grad_()
    state = torch.random.get_rng_state()
    batch = views(source, generators(1, 2, 3), size=24)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert batch.shape == (3 * len(views), 3, 24, 24) and batch.dtype == torch.float32
    (gradient,) = torch.autograd.grad(batch.square().sum(), source)
    torch.rand(100)
    for i, seed in enumerate((1, 2, 3)):
        one = source[i : i + 1].detach().requires_grad_()
        alone = views(one, generators(seed), size=24)
        assert torch.equal(batch.unflatten(0, (3, -1))[i], alone)
        assert torch.equal(torch.autograd.grad(alone.square().sum(), one)[0][0], gradient[i])
    assert not torch.equal(views(source, generators(1, 2, 4), size=24), batch)


def test_generators_go_on():
    one = generators(5)
    first, second = (Warped()(image(number=1), one, size=24) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [8, 24, 50, 80])
def test_at_zero_strength_the_overview_is_resized(size, padding):
    source = image(height=30, width=50)
    views = Warped(overview=2, inner=0, padding=padding, **STILL)
    expected = F.interpolate(source, (size, size), mode="bilinear", antialias=True)
    result = views(source, generators(1, 2, 3), size=size)
    assert_close(result, expected.repeat_interleave(2, 0), atol=1e-9, rtol=0)
    single = views(source.float(), generators(1, 2, 3), size=size)
    assert_close(single.double(), result, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_at_zero_strength_a_crop_is_resized(size):
    """Each view is one of all crops of its size, at more than one place."""
    source = image(height=12, width=15, number=1)
    views = Warped(overview=0, inner=8, size_range=(0.5, 0.5), **STILL)
    crops = source[0].unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    crops = F.interpolate(crops, (size, size), mode="bilinear", antialias=True)
    places = set()
    for view in views(source, generators(3), size=size):
        hits = (crops - view).abs().amax((1, 2, 3)) < 1e-9
        assert hits.sum() == 1
        places.add(int(hits.nonzero()))
    assert len(places) > 3


def test_turn_mirror_and_shift():
    view = image(height=8, width=8)[0]
    assert_close(whole(view, affine(angle=90)), view.rot90(1, (1, 2)))  # anticlockwise
    assert_close(whole(view, affine(mirror=True)), view.flip(2))
    assert_close(whole(view, affine(mirror=True, angle=90)), view.flip(2).rot90(1, (1, 2)))
    shifted = torch.zeros_like(view)
    shifted[:, 1:, :-2] = view[:, :-1, 2:]  # down by one pixel, left by two
    matrix = affine(shift=(-2 / 8, 1 / 8))
    assert_close(whole(view, matrix), shifted)
    expected = F.pad(view, (0, 2, 1, 0), mode="replicate")[:, :-1, 2:]
    assert_close(whole(view, matrix, "border"), expected)
    expected = torch.cat([view[:, :1], view[:, :-1]], 1)  # the edge is the mirror
    expected = torch.cat([expected[:, :, 2:], expected[:, :, -2:].flip(2)], 2)
    assert_close(whole(view, matrix, "reflection"), expected)


def test_shear_and_scale():
    view = image(height=5, width=5)[0]
    expected = torch.zeros_like(view)
    for row in range(5):
        for column in range(5):
            if 0 <= column - (row - 2) < 5:
                expected[:, row, column] = view[:, row, column - (row - 2)]
    assert_close(whole(view, affine(shear=45)), expected)
    view = image(height=8, width=8)[0]
    middle = F.interpolate(view[None], (16, 16), mode="bilinear")[0, :, 4:12, 4:12]
    assert_close(whole(view, affine(scale=2)), middle)


def test_a_homography_by_hand():
    """Pixel by pixel, from the inverse of the matrix and four neighbours."""
    view = image(height=7, width=7)[0]
    matrix = torch.tensor([[0.9, 0.2, 0.1], [-0.1, 0.8, 0.05], [0.15, -0.1, 1]]).double()
    result = whole(view, matrix, "border")
    for row in range(7):
        for column in range(7):
            place = [(2 * column + 1) / 7 - 1, (2 * row + 1) / 7 - 1, 1]
            x, y, depth = torch.linalg.solve(matrix, matrix.new_tensor(place)).tolist()
            x, y = (min(max((v / depth + 1) * 3.5 - 0.5, 0), 6) for v in (x, y))
            left, top = min(int(x), 5), min(int(y), 5)
            right, down = x - left, y - top
            a, b = view[:, top, left : left + 2].T, view[:, top + 1, left : left + 2].T
            expected = (1 - down) * ((1 - right) * a[0] + right * a[1])
            expected = expected + down * ((1 - right) * b[0] + right * b[1])
            assert_close(result[:, row, column], expected)


def test_perspective_is_that_of_torchvision():
    inward = torch.tensor([[0.1, 0.2], [0.05, 0.15], [0.25, 0.1], [0.2, 0.05]]).double()
    (matrix,), (area,) = warps.perspective(inward[None])
    edges = [[0, 0], [16, 0], [16, 16], [0, 16]]
    ends = [[1.6, 3.2], [15.2, 2.4], [12, 14.4], [3.2, 15.2]]
    for (x, y), end in zip(edges, ends, strict=True):
        shown = matrix @ matrix.new_tensor([x / 8 - 1, y / 8 - 1, 1])
        assert_close(shown[:2] / shown[2], matrix.new_tensor(end) / 8 - 1)
    shoelace = sum(
        ends[i][0] * ends[(i + 1) % 4][1] - ends[(i + 1) % 4][0] * ends[i][1] for i in range(4)
    )
    assert float(area) == pytest.approx(shoelace / 2 / 16**2)
    view = image(height=16, width=16)[0]
    inside = whole(F.pad(torch.ones_like(view[:, 1:-1, 1:-1]), (1, 1, 1, 1)), matrix) == 1
    assert inside.sum() > 200
    expected = torchvision_perspective(view, edges, ends)
    assert_close(whole(view, matrix)[inside], expected[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"size_range": (0.8, 1)},
        {"size_range": (0.8, 1), "p": 1, "degrees": 90},
        {"p": 1, "scale": (0.25, 0.25), "size": 64},
        {"p": 1, "degrees": 45, "perspective": 0.6, "translate": 0.3},
    ],
    ids=str,
)
def test_a_fine_checkerboard_turns_grey(settings):
    still = {**STILL, "degrees": 0, "translate": 0, "perspective": 0}
    still |= dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0)
    settings = still | settings
    size = settings.pop("size", 16)
    board = checkerboard(64)
    for padding in ("reflection", "border"):
        views = Warped(inner=10, padding=padding, **settings)(board, generators(0), size=size)
        assert (views - 0.5).abs().max() < 0.1
    aliased = F.interpolate(board, (20, 20), mode="bilinear")
    assert (aliased - 0.5).abs().max() > 0.3


@pytest.mark.parametrize("law", ["power", "cosine"])
@pytest.mark.parametrize("power", [1.0, 3.0])
def test_law_of_sizes(law, power):
    """Mean and deviation of sides, as shares, against integrals; a ramp shows the side of a crop:
    columns of its view lie side / 4 apart."""
    ramp = torch.linspace(0, 1, 401, dtype=torch.float64).expand(1, 3, 401, 401)
    views = Warped(overview=0, inner=1000, size_range=(0.2, 0.8), law=law, power=power, **STILL)(
        ramp, generators(7), size=4
    )
    share = ((views[:, 0, 0, 2] - views[:, 0, 0, 1]) * 4 * 400 / 401 - 0.2) / 0.6
    u = (torch.arange(10000) + 0.5) / 10000
    expected = u**power if law == "power" else (1 - torch.cos(math.pi * u**power)) / 2
    mean = {1: 0.5, 3: 1 / 4}[power] if law == "power" or power == 1 else float(expected.mean())
    deviation = float(expected.std())
    assert float(share.mean()) == pytest.approx(mean, abs=4 * deviation / 1000**0.5)
    assert float(share.std()) == pytest.approx(deviation, rel=0.06)
    assert share.min() > -0.005 and share.max() < 1.005


def test_recolour():
    view = image(height=6, width=6)
    grey = view[:, :1].expand_as(view)
    luma = (view * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1, True)
    assert_close(recolour(view), view)
    assert_close(recolour(grey, saturation=0.3, hue=0.2), grey)
    assert_close(recolour(view, saturation=0), luma.expand_as(view))
    assert_close(recolour(view, saturation=1.5), luma + 1.5 * (view - luma))
    assert_close(recolour(view, brightness=0.7), 0.7 * view)
    mean = luma.mean((2, 3), keepdim=True)
    assert_close(recolour(view, contrast=0.6), mean + 0.6 * (view - mean))
    turned = recolour(view, hue=0.1)
    assert (turned - view).abs().max() > 0.05
    assert_close(recolour(turned, hue=-0.1), view)
    assert_close((turned.movedim(1, 3) @ torch.tensor([0.299, 0.587, 0.114]).double()), luma[:, 0])


def test_probabilities_of_one():
    square = image(height=24, width=24, number=1)
    base = {**STILL, "overview": 2, "inner": 0}
    mirrored = Warped(**{**base, "flip": 1})(square, generators(0), size=24)
    assert_close(mirrored, square.flip(3).expand_as(mirrored))
    grey = Warped(**base, grey=1)(square, generators(0), size=24)
    assert_close(grey[:, 0], grey[:, 2])
    erased = Warped(**{**base, "overview": 60}, erase=1)(square + 1, generators(0), size=24)
    black = (erased == 0).all(1)
    assert ((erased == 0) == black[:, None]).all()
    share = black.double().mean((1, 2))
    assert 0.06 < share.min() < 0.2 and 0.3 < share.max() < 0.45
    noisy = Warped(**{**base, "overview": 300, "noise": 0.1})(square, generators(0), size=24)
    deviation = (noisy - square).std((1, 2, 3))
    assert 0 < deviation.min() < 0.01 and 0.09 < deviation.max() < 0.103
    assert float(deviation.mean()) == pytest.approx(0.05, rel=0.1)


def test_gradient_by_finite_differences():
    source = image(height=7, width=8, number=1).requires_grad_()
    views = dataclasses.replace(WILD, inner=3)

    def weighted(x):
        seen = views(x, generators(4), size=5)
        return (seen * torch.linspace(0, 1, seen.numel()).view_as(seen)).sum()

    assert torch.autograd.gradcheck(weighted, (source,))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_values_stay_finite(size, padding):
    settings = {"degrees": 180, "shear": 80, "perspective": 0.95, "scale": (0.1, 10)}
    views = Warped(inner=60, p=1, translate=1, noise=0, padding=padding, **settings)
    source = image(height=9, width=5, number=1).float().requires_grad_()
    seen = views(source, generators(1), size=size)
    assert seen.isfinite().all() and seen.abs().max() < 3
    assert torch.autograd.grad(seen.sum(), source)[0].isfinite().all()


def test_half_precision_is_cast_at_the_end():
    source = image().bfloat16()
    expected = WILD(source.float(), generators(1, 2, 3), size=8).bfloat16()
    assert torch.equal(WILD(source, generators(1, 2, 3), size=8), expected)


def test_presets():
    assert [len(views) for views in PRESETS.values()] == [16, 32, 16]
    assert len(Warped.vqgan_clip(number=64)) == 64
    assert len(Warped.disco(overview=4, inner=20)) == 24


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"overview": 0, "inner": 0}, "at least one view, not 0 \\+ 0"),
        ({"overview": 3, "inner": -1}, "at least one view"),
        ({"law": "cosin"}, "no law of views 'cosin'. Did you mean cosine"),
        ({"padding": "reflect"}, "no padding of views 'reflect'. Did you mean reflection"),
        ({"size_range": (0, 1)}, "size_range of views lies in \\(0, 1\\]"),
        ({"size_range": (0.9, 0.2)}, "size_range"),
        ({"scale": (0, 1)}, "scale of views is a range in \\[0.1, 10\\]"),
        ({"power": 0}, "power of views is above 0"),
        ({"power": math.inf}, "power of views"),
        ({"degrees": 181}, "degrees of views lies in \\[0, 180\\], not 181"),
        ({"perspective": 1}, "perspective of views lies in \\[0, 0.95\\]"),
        ({"hue": 0.6}, "hue of views lies in \\[0, 0.5\\]"),
        ({"p": 1.5}, "The p of views lies in \\[0, 1\\], not 1.5"),
        ({"noise": math.nan}, "noise of views"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UsageError, match=message):
        Warped(**settings)


def test_as_many_generators_as_images():
    with pytest.raises(ClipguideError, match="3 images need as many generators, not 1"):
        Warped()(image(), generators(1), size=24)


@pytest.mark.parametrize("chunk", [None, 2])
def test_objectives_take_them(clip_folder, chunk):
    """With values in [0, 1]: beyond it the gradient is not that of what the CLIP clamps."""
    clip, source = load_clip(str(clip_folder), dtype="float64"), images(2, low=0.4, high=0.6)
    views = dataclasses.replace(WILD, inner=2, erase=0, noise=0.02)
    for seed in (1, 2):
        seen = views(source[:1], generators(seed), size=32)
        assert seen.min() > 0 and seen.max() < 1
    for objective in (
        Similarity(clip, "a red fox", views=views, chunk=chunk),
        InitSimilarity(clip, image(9, number=1)[0], views=views, chunk=chunk),
    ):
        check_gradient(objective, source)
        check_rows(objective, source)


def test_init_is_seen_in_the_same_views(clip):
    source = image(number=2).float()
    views = dataclasses.replace(WILD, inner=2)
    loss_B = InitSimilarity(clip, source, views=views)(source, generators(1, 2))
    assert_close(loss_B, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.bench
@pytest.mark.parametrize("side, size", [(128, 128), (256, 224)])
def test_time_of_64_views(side, size):
    """Forward and backward, of the processor; at most three times that of plain cutouts."""
    kinds = {
        "cutouts": Cutouts(number=64, whole=False),
        "warped": Warped(overview=1, inner=63),
        "vqgan_clip": Warped.vqgan_clip(number=64),
    }
    best = dict.fromkeys(kinds, math.inf)
    for _ in range(5):
        for name, views in kinds.items():
            source = image(height=side, width=side, number=1).float().requires_grad_()
            start = time.process_time()
            views(source, generators(0), size=size).sum().backward()
            best[name] = min(best[name], time.process_time() - start)
    print({name: f"{1000 * seconds:.0f} ms" for name, seconds in best.items()})
    assert best["warped"] < 3 * best["cutouts"]
