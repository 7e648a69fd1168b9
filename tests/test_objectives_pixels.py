"""Objectives of pixels: finite differences, batch against single, values by another formula."""

from __future__ import annotations

import math

import pytest
import torch
from objective_checks import check_gradient, check_rows, images
from torch.testing import assert_close

from clipguide.errors import UsageError
from clipguide.objectives import Palette, Range, Saturation, Symmetry, TotalVariation

COLOURS = ["#204060", (0.9, 0.8, 0.1), (0, 0, 0)]
ALL = {
    "total variation": TotalVariation(),
    "range": Range(),
    "saturation": Saturation(),
    "horizontal": Symmetry("horizontal"),
    "vertical": Symmetry("vertical"),
    "palette": Palette(COLOURS),
    "soft palette": Palette(COLOURS, softness=0.5),
}


@pytest.mark.parametrize("name", ALL)
def test_gradient_and_rows(name):
    outside = name in ("range", "saturation")
    image = images(low=-0.3, high=1.3) if outside else images()
    check_gradient(ALL[name], image)
    check_rows(ALL[name], image)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 3, 7, 4)])
def test_any_shape(name, shape):
    loss_B = ALL[name](torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    assert loss_B.shape == shape[:1] and loss_B.isfinite().all() and loss_B.dtype == torch.float32


def test_saturation_is_discos():
    """sat_loss of Disco Diffusion on x in [-1, 1], an image at a time."""
    image = images(low=-0.5, high=1.5)
    for x, loss in zip(2 * image - 1, Saturation()(image), strict=True):
        assert_close(loss, (x - x.clamp(min=-1, max=1)).abs().mean())
    assert Saturation()(images()).count_nonzero() == 0


def test_symmetry():
    left = images(1)[..., :18]
    twin = torch.cat([left, left.flip(-1)], -1)
    assert Symmetry("horizontal")(twin).item() == 0
    assert Symmetry("vertical")(twin).item() > 0.01
    assert_close(Symmetry("vertical")(twin.transpose(-1, -2)), Symmetry("horizontal")(twin))
    ramp = torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2)
    assert Symmetry("horizontal")(ramp).item() == 1


def test_palette():
    """A smooth minimum: the least squared distance, and up to s·log K more."""
    pixel = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    image = pixel[None, :, None, None].expand(1, 3, 2, 2)
    colours = [(0.5, 0.25, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    distances = [sum((p - c) ** 2 for p, c in zip(pixel.tolist(), colour)) for colour in colours]
    for s in (1.0, 0.1):
        mean = sum(math.exp(-d / s) for d in distances) / 3
        assert Palette(colours, softness=s)(image).item() == pytest.approx(-s * math.log(mean))
    sharp = Palette(colours, softness=1e-3)(image).item()
    assert min(distances) <= sharp <= min(distances) + 1e-3 * math.log(3) + 1e-9
    one = Palette([colours[0]])(image).item()
    assert one == pytest.approx(distances[0])
    assert Palette(["#ff8000"]).colours == ((1, 128 / 255, 0),)


def test_bad_input():
    with pytest.raises(UsageError, match="no symmetry 'horizontl'. Did you mean horizontal"):
        Symmetry("horizontl")
    for colours in ([], "#ffffff"):
        with pytest.raises(UsageError, match="palette is a list"):
            Palette(colours)
    for colour in ("red", "#fff", "#gggggg", "ffffff", (1, 2, 3), (0, 0), None, (0, 0, math.nan)):
        with pytest.raises(UsageError, match="is no colour: write #rrggbb"):
            Palette([colour])
    for softness in (0, -1, math.nan):
        with pytest.raises(UsageError, match="softness"):
            Palette(["#ffffff"], softness=softness)
