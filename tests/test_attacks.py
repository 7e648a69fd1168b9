"""The attacks: inside their balls, uphill, at the boundary where a linear loss has its maximum."""

import pytest
import torch

from clipguide.finetune.attacks import ATTACKS

LENGTH = {
    "l2": lambda x: x.flatten(1).norm(dim=1),
    "linf": lambda x: x.flatten(1).abs().amax(dim=1),
}
RADII = {"l2": [0.0, 0.3, 0.8], "linf": [0.0, 0.02, 0.1]}
norms = pytest.mark.parametrize("norm", sorted(ATTACKS))


def setting(norm, seed=0):
    """Grey images, from whose balls no corner is cut by [0, 1]; radii; a generator."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.4 * torch.rand(3, 3, 8, 8, generator=generator)
    return image, torch.tensor(RADII[norm]), generator


@norms
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_inside_the_ball_and_uphill(norm, steps):
    image, radius, generator = setting(norm)
    target = torch.rand(3, 8, 8, generator=generator)

    def loss(x):
        return (x - target).square().flatten(1).sum(1)

    moved = ATTACKS[norm](loss, image, radius_B=radius, steps=steps, generator=generator)
    assert (LENGTH[norm](moved - image) <= radius + 1e-6).all()
    assert torch.equal(moved[0], image[0])
    assert (loss(moved) > loss(image))[1:].all()
    assert not moved.requires_grad


@norms
def test_a_linear_loss_is_raised_by_all_that_the_ball_allows(norm):
    """radius · ‖w‖ of the dual norm: L2's own, and L1 for L∞ (Hölder)."""
    image, radius, generator = setting(norm)
    weight = torch.randn(3, 8, 8, generator=generator)

    def loss(x):
        return (x * weight).flatten(1).sum(1)

    moved = ATTACKS[norm](loss, image, radius_B=radius, steps=10, generator=generator)
    dual = weight.norm() if norm == "l2" else weight.abs().sum()
    gain, most = loss(moved) - loss(image), radius * dual
    assert (gain <= most * (1 + 1e-5) + 1e-5).all()
    assert (gain >= 0.97 * most - 1e-5).all()


@norms
def test_pictures_stay_pictures_and_seeds_repeat(norm):
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).round()
    radius = torch.tensor([2.0, 1.0])
    first, again, other = (
        ATTACKS[norm](
            lambda x: x.sin().flatten(1).sum(1),
            image,
            radius_B=radius,
            steps=2,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    )
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


@norms
def test_no_weight_gets_a_gradient(norm):
    image, radius, generator = setting(norm)
    layer = torch.nn.Linear(8, 1)
    with torch.no_grad():  # as a loop may ask for it: the attack needs gradients all the same
        ATTACKS[norm](
            lambda x: layer(x).flatten(1).sum(1),
            image,
            radius_B=radius,
            steps=1,
            generator=generator,
        )
    assert layer.weight.grad is None
