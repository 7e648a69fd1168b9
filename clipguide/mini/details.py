"""The network that shows the U-Net of the embedded generator the details of a drawing.

As in a ControlNet (Zhang et al. 2023, arXiv:2302.05543), the U-Net stays as it is, and what the
network returns is added to its skip connections. The details are a code of whole numbers from 0 to
LEVELS - 1 (finite scalar quantization, Mentzer et al. 2024, arXiv:2309.15505), learned together
with the network. The encoder that finds the code of a drawing saw no colours: these come from the
map. `training.details` trains both.

Shapes: B images, K channels of a map, C channels of a code, whose side is twice that of the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

LEVELS = 4  # of a number of the code, so that four of them fit into a byte


class Details(ModelMixin, ConfigMixin):
    """Return what is added to the skip connections of a U-Net.

    Args:
        channels: C.
        maps: K.
        hidden: the width of the network, a multiple of 8.
        skips: the channels of the skip connections, in the order of the U-Net.
        halvings: for each of them, how often its side is halved from that of the latents.
        middle: the channels of the block in the middle.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 8,
        maps: int = 28,
        hidden: int = 40,
        skips: Sequence[int] = (96, 96, 96, 192, 192, 192),
        halvings: Sequence[int] = (0, 0, 1, 1, 2, 2),
        middle: int = 192,
    ) -> None:
        super().__init__()
        self.see = nn.Conv2d(channels + maps, hidden, 3, padding=1)
        self.coarse, self.fine = Residual(hidden), Residual(hidden)
        self.enlarge = nn.Conv2d(hidden, 4 * hidden, 1)
        self.time = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2 * hidden))
        self.heads = nn.ModuleList(
            nn.Conv2d(hidden, width, 1) for width, k in zip(skips, halvings) if k < 2
        )
        for head in self.heads:  # at first, the U-Net draws as without it
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self, code_BChw: Tensor, map_BKhw: Tensor, timestep: Tensor, size: tuple[int, int]
    ) -> dict[str, object]:
        """Return the keyword arguments of `UNet2DConditionModel`.

        Args:
            code_BChw: the codes, each number in [-1, 1]. Nothing is added for a code of zeros.
            map_BKhw: the maps.
            timestep: one timestep, or one for each image, from 0 to 1000.
            size: height and width of the latents.

        Returns:
            "down_block_additional_residuals", "mid_block_additional_residual".
        """
        batch, config = len(code_BChw), self.config
        sides = [
            [math.ceil(edge / 2**k) for edge in size] for k in range(max(config.halvings) + 1)
        ]
        angle_B = torch.as_tensor(timestep, device=map_BKhw.device).float() * math.pi / 2000
        angle_B = angle_B.expand(batch)
        time = torch.stack([angle_B.cos(), angle_B.sin(), (2 * angle_B).sin()], 1).to(map_BKhw)
        small_B, large_B = self.time(time)[..., None, None].chunk(2, 1)
        both = [F.interpolate(x, sides[1], mode="nearest") for x in (code_BChw, map_BKhw)]
        half = F.silu(self.coarse(self.see(torch.cat(both, 1))))
        full = F.pixel_shuffle(self.enlarge(half), 2)[..., : size[0], : size[1]]
        full = F.silu(self.fine(full))
        told_B = code_BChw.flatten(1).any(1).to(half).view(-1, 1, 1, 1)
        of_side = full * (1 + large_B), half * (1 + small_B)

        def nothing(width: int, k: int) -> Tensor:
            return half.new_zeros(batch, width, *sides[k])

        heads = iter(self.heads)
        return {
            "down_block_additional_residuals": [
                next(heads)(of_side[k]) * told_B if k < 2 else nothing(width, k)
                for width, k in zip(config.skips, config.halvings)
            ],
            "mid_block_additional_residual": nothing(config.middle, -1),
        }


class Residual(nn.Module):
    """Two convolutions, whose output is added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


def packed(code_NChw: Tensor) -> Tensor:
    """Return codes in [-1, 1] as bytes_N(C·h·w / 4): four numbers in each."""
    whole = ((code_NChw + 1) * (LEVELS - 1) / 2).round().to(torch.uint8).flatten(1)
    parts = whole.unflatten(1, (-1, 4)).unbind(2)
    return sum(part << (2 * k) for k, part in enumerate(parts))


def unpacked(byte_NM: Tensor, channels: int) -> Tensor:
    """Return square codes_NChw in [-1, 1] from bytes: the inverse of `packed`."""
    whole = torch.stack([(byte_NM >> (2 * k)) & 3 for k in range(4)], 2).flatten(1)
    side = math.isqrt(whole.shape[1] // channels)
    return whole.float().view(-1, channels, side, side) * 2 / (LEVELS - 1) - 1
