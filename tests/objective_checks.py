"""What several tests of objectives check alike."""

from __future__ import annotations

import torch
from torch.testing import assert_close

SEEDS = (1, 2, 3)


def images(number: int = 3, low: float = 0.1, high: float = 0.9, size: int = 36) -> torch.Tensor:
    """Noise in [low, high], float64."""
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(
        number, 3, size, size, generator=generator, dtype=torch.float64
    )


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def gradient_of(objective, image, seeds=SEEDS) -> torch.Tensor:
    """What a driver takes: one gradient of the sum."""
    image = image.detach().requires_grad_()
    loss_B = objective(image, generators(*seeds[: len(image)]))
    return torch.autograd.grad(loss_B.sum(), image)[0]


def check_gradient(objective, image) -> None:
    """Each image's own loss along random directions, in float64, and no other image's pixels."""
    image = image.detach().requires_grad_()
    number = len(image)
    loss_B = objective(image, generators(*SEEDS[:number]))
    assert loss_B.shape == (number,)
    for i in range(number):
        (gradient,) = torch.autograd.grad(loss_B[i], image, retain_graph=True)
        assert torch.count_nonzero(gradient[[j for j in range(number) if j != i]]) == 0
        assert torch.count_nonzero(gradient[i])
        direction = torch.randn(image.shape, generator=generators(i)[0]).double()
        with torch.no_grad():
            ahead, behind = (
                objective(image + step * direction, generators(*SEEDS[:number]))[i]
                for step in (1e-6, -1e-6)
            )
        expected = (ahead - behind) / 2e-6
        assert_close((gradient * direction).sum(), expected, rtol=2e-4, atol=1e-9)


def check_rows(objective, image, singles=None) -> None:
    """Loss and gradient of a batch are those of each image alone; `singles` has one objective an
    image, the same one without it."""
    batch = objective(image, generators(*SEEDS[: len(image)]))
    gradient = gradient_of(objective, image)
    for i in range(len(image)):
        one = singles[i] if singles else objective
        alone = one(image[i : i + 1], generators(SEEDS[i]))
        assert_close(batch[i], alone[0], rtol=1e-9, atol=1e-12)
        alone = gradient_of(one, image[i : i + 1], SEEDS[i:])
        assert_close(gradient[i], alone[0], rtol=1e-7, atol=1e-12)
