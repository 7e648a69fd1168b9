"""The VQGAN canvas: latents are rounded to the codes of a codebook, and decoded.

Crowson et al. 2022, "VQGAN-CLIP": the latents z are optimised and decoded as their nearest code.
The gradient passes the rounding unchanged (van den Oord et al. 2017, straight through). With a
`temperature` τ, the code is soft: Σ softmax(−‖z − e‖² / τ) e.

Shapes: B images, 3 channels, H x W pixels, D channels of h x w latents, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UsageError
from .base import Canvas
from .latent import around, check_sides, factor_of


class VQGAN(Canvas):
    """The canvas image = decoder(code(z)) / 2 + 0.5. It starts as random codes.

    `model` is a VQModel of diffusers. It is in neither `parameters()` nor `state_dict()`. `tile` is
    that of `Latent`.

    Raises:
        UsageError: a side is not a multiple of the factor of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        height: int,
        width: int,
        generators: Sequence[torch.Generator],
        *,
        temperature: float = 0.0,
        tile: bool = False,
    ) -> None:
        super().__init__(height, width, generators)
        if not temperature >= 0:
            raise UsageError(f"The temperature of soft codes is at least 0, not {temperature}.")
        self.tile = tile
        factor = factor_of(model)
        check_sides(height, width, factor)
        self._whole, self.temperature = [model], temperature
        sides = (height // factor, width // factor)
        codes = len(self.codes_KD)
        index_Bhw = [torch.randint(codes, sides, generator=g) for g in generators]
        start_BhwD = self.codes_KD[torch.stack(index_Bhw).to(self.codes_KD.device)]
        self.latents_BDhw = nn.Parameter(start_BhwD.permute(0, 3, 1, 2).contiguous().float())

    @property
    def model(self) -> nn.Module:
        """Return the VQModel."""
        return self._whole[0]

    @property
    def codes_KD(self) -> torch.Tensor:
        """Return the codebook."""
        return self.model.quantize.embedding.weight.detach()

    def decode(self) -> torch.Tensor:
        code_BDhw = self._code(self.latents_BDhw).to(self.codes_KD.dtype)
        decoded = self.model.decode(code_BDhw, force_not_quantize=True).sample
        return (decoded / 2 + 0.5).float()

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp the latents to the range of the codebook in each channel."""
        low_D, high_D = self.codes_KD.float().aminmax(dim=0)
        low, high = (bound.view(1, -1, 1, 1) for bound in (low_D, high_D))
        self.latents_BDhw.copy_(self.latents_BDhw.clamp(low, high))

    @torch.no_grad()
    def indices(self) -> torch.Tensor:
        """Return the nearest code of each latent: (B, h, w)."""
        return self._distances(self.latents_BDhw).argmin(-1)

    def _code(self, latents_BDhw: torch.Tensor) -> torch.Tensor:
        codes_KD = self.codes_KD.float()
        if self.temperature:
            share_BhwK = (-self._distances(latents_BDhw) / self.temperature).softmax(-1)
            return (share_BhwK @ codes_KD).permute(0, 3, 1, 2)
        with torch.no_grad():
            nearest_BhwD = codes_KD[self._distances(latents_BDhw).argmin(-1)]
            step_BDhw = nearest_BhwD.permute(0, 3, 1, 2) - latents_BDhw
        return latents_BDhw + step_BDhw

    def _distances(self, latents_BDhw: torch.Tensor) -> torch.Tensor:
        """Return ‖z − e‖² as (B, h, w, K)."""
        latents_BhwD = latents_BDhw.permute(0, 2, 3, 1)
        codes_KD = self.codes_KD.float()
        square = latents_BhwD.square().sum(-1, keepdim=True) + codes_KD.square().sum(-1)
        return square - 2 * latents_BhwD @ codes_KD.T

    def set_(self, image_B3HW: torch.Tensor) -> None:
        if self.model.config.get("_quantizer") == "gumbel":  # set by `taming.convert`
            raise UsageError(
                "A Gumbel VQGAN cannot begin with an image: its encoder does not tell codes by "
                "their distance. Begin without one, or take a VQGAN with nearest codes."
            )
        image_B3HW = image_B3HW.to(next(self.model.parameters())) * 2 - 1
        factor = factor_of(self.model) if self.tile else 0
        latents_BDhw = around(lambda x: self.model.encode(x).latents, image_B3HW, factor)
        self.latents_BDhw.copy_(latents_BDhw)
