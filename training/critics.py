"""The discriminators of the autoencoders: they tell drawings from what a decoder draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patches() -> nn.Sequential:
    """Return a discriminator that maps each patch of 34 pixels to one logit (Isola et al. 2017).

    It has group norm instead of batch norm.
    """
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.GroupNorm(8, 64),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1),
        nn.GroupNorm(8, 128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 3, 1, 1),
    )


class OnFeatures(nn.ModuleList):
    """A discriminator for each of several feature maps of a frozen network (Sauer et al. 2021).

    Each maps a cell and its neighbours to one logit.

    Args:
        widths: the channels of the feature maps.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__(
            nn.Sequential(
                nn.Conv2d(width, 64, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.GroupNorm(8, 64),
                nn.LeakyReLU(0.2),
                nn.Conv2d(64, 1, 1),
            )
            for width in widths
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the logits_B1hw of each feature map_BChw. Its channels have norm 1 at each place,
        so that sqrt(C) gives them rms 1."""
        return [head(x * x.shape[1] ** 0.5) for head, x in zip(self, features)]


def telling(real: list[Tensor], drawn: list[Tensor]) -> Tensor:
    """Return the hinge loss of discriminators (Lim & Ye 2017), the mean over them: logits_B1hw of
    real images rise, those of drawn ones fall."""
    told = [F.relu(1 - r).mean() + F.relu(1 + d).mean() for r, d in zip(real, drawn, strict=True)]
    return torch.stack(told).mean()


def fooling(drawn: list[Tensor]) -> Tensor:
    """Return the adversarial loss of the decoder: minus the mean of the logits_B1hw of its images.
    """
    return -torch.stack([d.mean() for d in drawn]).mean()
