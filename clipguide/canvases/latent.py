"""The latent canvas: what an autoencoder of diffusers decodes, AutoencoderKL or AutoencoderTiny.

Shapes: B pictures, 3 channels, H x W pixels, C channels of h x w latents.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UsageError
from .base import Canvas, normal


class Latent(Canvas):
    """image = decoder(latents) / 2 + 0.5, in the autoencoder's own units; begins as noise.

    `autoencoder` stands in neither `parameters()` nor `state_dict()`; it is used as it is, on its
    device and in its dtype. UsageError if a side is no multiple of its factor.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        height: int,
        width: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__(height, width, generators)
        self._whole = [autoencoder]  # in a list, it is no part of this module
        weight = next(autoencoder.parameters())
        channels, factor = autoencoder.config.latent_channels, factor_of(autoencoder)
        check_sides(height, width, factor)
        shape = (channels, height // factor, width // factor)
        self.latents_BChw = nn.Parameter(normal(shape, generators).to(weight.device))

    @property
    def autoencoder(self) -> nn.Module:
        """What decodes."""
        return self._whole[0]

    def decode(self) -> torch.Tensor:
        latents_BChw = self.latents_BChw.to(next(self.autoencoder.parameters()).dtype)
        return (self.autoencoder.decode(latents_BChw).sample / 2 + 0.5).float()

    def _encode(self, image_B3HW: torch.Tensor) -> None:
        weight = next(self.autoencoder.parameters())
        encoded = self.autoencoder.encode(image_B3HW.to(weight) * 2 - 1)
        tiny = not hasattr(encoded, "latent_dist")
        self.latents_BChw.copy_(encoded.latents if tiny else encoded.latent_dist.mode())


def tiling(autoencoder: nn.Module) -> nn.Module:
    """A copy whose convolutions see, beyond an edge, the other edge: its pictures tile, as near as
    attention and group norms, which see all of a picture, have it anyway."""
    copied = copy.deepcopy(autoencoder)
    for module in copied.modules():
        if type(module) is nn.Conv2d and any(module.padding):
            module.padding_mode = "circular"
    return copied


def factor_of(autoencoder: nn.Module) -> int:
    """How many pixels a latent is wide."""
    config = autoencoder.config
    widths = getattr(config, "decoder_block_out_channels", None) or config.block_out_channels
    return 2 ** (len(widths) - 1)


def check_sides(height: int, width: int, factor: int) -> None:
    """UsageError unless both are multiples of `factor`."""
    if height % factor or width % factor:
        raise UsageError(
            f"This canvas has sides of a multiple of {factor} pixels, not {width}x{height}."
        )
