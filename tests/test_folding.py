"""Batch norms folded into convolutions: the same function, or nothing at all."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from clipguide import load_clip
from clipguide.clip import folding
from clipguide.clip.folding import fold, pairs


def randomise(tower):
    """Norms that do something, in evaluation, frozen."""
    torch.manual_seed(0)
    for norm in tower.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    return tower.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image():
    """In float64: what is left between the two is no rounding."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 64, 64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100"])
def test_towers_stay_what_they_are(name, image, monkeypatch):
    tower = randomise(timm.create_model(name, num_classes=8))
    folded = copy.deepcopy(tower)
    assert fold(folded, lambda: folded(image[:1]))
    values, gradients = [], []
    for each in (tower, folded):
        x = image.clone().requires_grad_()
        values.append(each(x))
        gradients.append(torch.autograd.grad(values[-1].square().mean(), x)[0])
    assert_close(values[1], values[0], rtol=1e-9, atol=1e-9 * values[0].abs().max().item())
    size = gradients[0].abs().max().item()
    assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-7 * size)
    monkeypatch.setattr(torch.nn.functional, "batch_norm", None)
    folded(image)
    assert not any(p.requires_grad for p in folded.parameters())


def test_norms_that_run_before_are_left(image):
    class Before(nn.Module):
        """Defined in the other order than it runs."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(x))

    tower = randomise(Before())
    before, state = tower(image), copy.deepcopy(tower.state_dict())
    assert list(pairs(tower))
    assert not fold(tower, lambda: tower(image[:1]))
    assert torch.equal(tower(image), before)
    assert all(torch.equal(state[key], value) for key, value in tower.state_dict().items())


def test_towers_without_norms_are_left(image):
    tower = nn.Conv2d(3, 3, 3).double()
    assert not fold(tower, lambda: tower(image))


def test_a_clip_is_folded_and_keeps_its_fingerprint(tiny_mini, monkeypatch):
    folded = load_clip("mini")
    monkeypatch.setattr("clipguide.clip.folding.fold", lambda tower, see: False)
    plain = load_clip("mini")
    assert folded.fingerprint == plain.fingerprint
    image = torch.rand(2, 3, 50, 40, generator=torch.Generator().manual_seed(2))
    assert_close(folded.encode_image(image), plain.encode_image(image), atol=1e-5, rtol=0)
    monkeypatch.setattr(torch.nn.functional, "batch_norm", None)
    folded.encode_image(image)
    with pytest.raises(TypeError):
        plain.encode_image(image)


def test_training_skips_norms_and_trains_alike(image):
    tower = randomise(timm.create_model("tf_efficientnet_lite0", num_classes=8))
    tower.requires_grad_(True)
    skipping = copy.deepcopy(tower)
    folding.skip(skipping)
    copied = copy.deepcopy(skipping)  # as the average of weights is
    for each in (tower, skipping):
        each(image).square().mean().backward()
    for mine, theirs in zip(skipping.parameters(), tower.parameters(), strict=True):
        size = theirs.grad.abs().max().item()
        assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-7 * size)
    assert skipping.state_dict().keys() == tower.state_dict().keys()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert not copied(image).any() and skipping(image).any()


def test_skipping_is_undone(image):
    tower = randomise(timm.create_model("resnet18", num_classes=8))
    before = tower(image)
    assert folding.skip(tower, lambda: tower(image))
    assert any("forward" in vars(module) for module in tower.modules())
    folding.unskip(tower)
    assert not any("forward" in vars(module) for module in tower.modules())
    assert torch.equal(tower(image), before)


def test_norms_that_are_called_in_another_order_are_not_skipped(image):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(x))

    tower = randomise(Other())
    before = tower(image)
    assert not folding.skip(tower, lambda: tower(image))
    assert torch.equal(tower(image), before)
