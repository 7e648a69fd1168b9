"""The latent canvas: latents that an autoencoder of diffusers decodes, AutoencoderKL or
AutoencoderTiny.

Shapes: B images, 3 channels, H x W pixels, C channels of h x w latents.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from .base import Canvas, normal

RIM = 8  # latents of the neighbouring tiles that the encoder sees on each side


class Latent(Canvas):
    """The canvas image = decoder(moments(latents)) / 2 + 0.5. It starts as noise.

    The latents have about the deviation 1, as those that a diffusion model sees. `moments` gives
    them the mean and deviation of the autoencoder's own.

    `autoencoder` is in neither `parameters()` nor `state_dict()`. It is used as it is, on its
    device and in its dtype. With `tile`, an image is encoded as if copies of it lay around it; use
    an autoencoder from `tiling`.

    Raises:
        UsageError: a side is not a multiple of the factor of the autoencoder.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        height: int,
        width: int,
        generators: Sequence[torch.Generator],
        *,
        tile: bool = False,
    ) -> None:
        super().__init__(height, width, generators)
        # in a list, so that it is not a part of this module
        self._whole, self.tile = [autoencoder], tile
        weight = next(autoencoder.parameters())
        channels, factor = autoencoder.config.latent_channels, factor_of(autoencoder)
        check_sides(height, width, factor)
        shape = (channels, height // factor, width // factor)
        self.latents_BChw = nn.Parameter(normal(shape, generators).to(weight.device))
        deviation_1C11, mean_1C11 = moments(autoencoder)
        self.register_buffer("deviation_1C11", deviation_1C11.to(weight.device), persistent=False)
        self.register_buffer("mean_1C11", mean_1C11.to(weight.device), persistent=False)

    @property
    def autoencoder(self) -> nn.Module:
        """Return the autoencoder."""
        return self._whole[0]

    def decode(self) -> torch.Tensor:
        latents_BChw = self.latents_BChw * self.deviation_1C11 + self.mean_1C11
        latents_BChw = latents_BChw.to(next(self.autoencoder.parameters()).dtype)
        return (self.autoencoder.decode(latents_BChw).sample / 2 + 0.5).float()

    def set_(self, image_B3HW: torch.Tensor) -> None:
        def encode(image_B3HW: torch.Tensor) -> torch.Tensor:
            encoded = self.autoencoder.encode(image_B3HW)
            tiny = not hasattr(encoded, "latent_dist")
            return encoded.latents if tiny else encoded.latent_dist.mode()

        image_B3HW = image_B3HW.to(next(self.autoencoder.parameters())) * 2 - 1
        factor = factor_of(self.autoencoder)
        latents_BChw = around(encode, image_B3HW, factor if self.tile else 0).float()
        self.latents_BChw.copy_((latents_BChw - self.mean_1C11) / self.deviation_1C11)


def moments(autoencoder: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the deviation_1C11 and the mean_1C11 of an autoencoder's latents, as its configuration
    says: of each channel (SDXL's kind), or one factor and one shift for all."""
    config = autoencoder.config
    factor, channels = config.get("scaling_factor") or 1.0, config.latent_channels
    deviation, mean = config.get("latents_std"), config.get("latents_mean")
    if deviation is None or mean is None:
        deviation, mean = [1.0] * channels, [config.get("shift_factor") or 0.0] * channels
    return torch.tensor(deviation).view(1, -1, 1, 1) / factor, torch.tensor(mean).view(1, -1, 1, 1)


def tiling(autoencoder: nn.Module) -> nn.Module:
    """Return a copy whose convolutions continue at the opposite edge. Its images tile, except for
    attention and group norms, which see the whole image."""
    copied = copy.deepcopy(autoencoder)
    for module in copied.modules():
        if type(module) is nn.Conv2d and any(module.padding):
            module.padding_mode = "circular"
    return copied


def around(
    encode: Callable[[torch.Tensor], torch.Tensor], image_B3HW: torch.Tensor, factor: int
) -> torch.Tensor:
    """Return what `encode` makes of images among copies of themselves. With a factor of 0, return
    that of the images alone."""
    if not factor:
        return encode(image_B3HW)
    rim = min(RIM, *(side // factor for side in image_B3HW.shape[-2:]))
    wide_B3HW = F.pad(image_B3HW, (rim * factor,) * 4, "circular")
    return encode(wide_B3HW)[..., rim:-rim, rim:-rim]


def recompute(autoencoder: nn.Module, on: bool) -> None:
    """Recompute a decoder's activations for the gradient, block by block, instead of keeping them
    (Chen et al. 2016). It needs the memory of one block and a third more time, and gives identical
    bits. Decoders of diffusers without this switch keep them."""
    decoder = autoencoder.decoder
    if hasattr(decoder, "gradient_checkpointing"):
        decoder.gradient_checkpointing = on
        decoder._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def factor_of(autoencoder: nn.Module) -> int:
    """Return the number of pixels per latent along a side."""
    config = autoencoder.config
    widths = getattr(config, "decoder_block_out_channels", None) or config.block_out_channels
    return 2 ** (len(widths) - 1)


def check_sides(height: int, width: int, factor: int) -> None:
    """Raise UsageError unless both sides are multiples of `factor`."""
    if height % factor or width % factor:
        raise UsageError(
            f"This canvas has sides of a multiple of {factor} pixels, not {width}x{height}."
        )
