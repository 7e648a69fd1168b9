"""The memory of the embedded generator: the maps of drawings, by what they show.

A retrieval-augmented diffusion model (Blattmann et al. 2022, arXiv:2204.11824) draws from what it
finds in a database. Here the database holds the condition of the U-Net: the map of a drawing says
coarsely what is where. Each map may have a code of the details of the drawing (`details`), folded
into D more channels. `training.memory` builds it.

Shapes: N maps in the memory, B maps, K channels of a map, C components, T objects, P colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from . import details
from .names import COLOURS, Named, Names
from .styles import STYLES

LEVELS = 7  # a code is a whole number from -LEVELS to LEVELS, two of them in a byte


class MapMemory(ModelMixin, ConfigMixin):
    """Maps with names, as codes of 4 bits of their principal components, and a network that
    recolours a map.

    Args:
        channels: K, the number of channels of a map.
        side: the number of cells in a side of a map.
        components: C, an even number.
        hidden: the width of the network that recolours.
        things: for each of T objects a line with its names (`names.written`).
        firsts: for each object, its first map. Its last is before the first of the next object.
        size: N.
        colours: words for colours in other languages, each with its English word.
        detail_channels: the channels of a code of details, a quarter of D; 0 without.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 28,
        side: int = 4,
        components: int = 256,
        hidden: int = 64,
        things: Iterable[str] = (),
        firsts: Iterable[int] = (),
        size: int = 0,
        colours: Mapping[str, str] = {},
        detail_channels: int = 0,
    ) -> None:
        super().__init__()
        width = channels * side**2
        self.register_buffer("codes", torch.zeros(size, components // 2, dtype=torch.uint8))
        self.register_buffer(
            "details", torch.zeros(size, detail_channels * side**2, dtype=torch.uint8)
        )
        self.register_buffer("style", torch.zeros(size, dtype=torch.uint8))  # of STYLES
        self.register_buffer("colour", torch.zeros(size, dtype=torch.uint8))  # of COLOURS, or more
        self.register_buffer("step", torch.ones(components))  # between two codes
        self.register_buffer("axes", torch.zeros(components, width))
        self.register_buffer("centre", torch.zeros(width))
        self.see = nn.Conv2d(3 * channels + len(COLOURS), hidden, 1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.paint = nn.Conv2d(hidden, channels, 1)

    @cached_property
    def names(self) -> Names:
        return Names(self.config.things, self.config.colours)

    def rows(self, named: Named, style: str | None = None) -> list[int]:
        """Return the maps of what a prompt names: those of a style and of the colour if there are
        some, in this order; otherwise all."""
        ends = [*self.config.firsts[1:], self.config.size]
        rows = [i for k in named.things for i in range(self.config.firsts[k], ends[k])]
        if style is not None:
            wanted = STYLES.index(style)
            rows = [i for i, k in zip(rows, self.style[rows].tolist()) if k == wanted] or rows
        if named.colour is not None:
            wanted = COLOURS.index(named.colour)
            rows = [i for i, k in zip(rows, self.colour[rows].tolist()) if k == wanted] or rows
        return rows

    def styles(self, named: Named) -> list[str]:
        """Return the styles of the maps of what a prompt names."""
        return [STYLES[k] for k in sorted({*self.style[self.rows(named)].tolist()})]

    def recall(self, rows: Iterable[int], colours: Iterable[str | None]) -> Tensor:
        """Return maps_B(K + D)hw, each in a colour of COLOURS unless it has it, or as it is for
        None. The details are behind the K channels (`split` divides them)."""
        rows, config = list(rows), self.config
        codes_BC = unpacked(self.codes[rows]) - LEVELS
        map_BN = (codes_BC * self.step.float()) @ self.axes.float() + self.centre.float()
        map_BKhw = map_BN.view(-1, config.channels, config.side, config.side)
        wanted = [None if c is None else COLOURS.index(c) for c in colours]
        own = self.colour[rows].tolist()
        new = [b for b, c in enumerate(wanted) if c is not None and own[b] != c]
        if new:
            terms = torch.tensor([wanted[b] for b in new], device=map_BKhw.device)
            # With offloading, the hook of `forward` moves the weights to another device.
            map_BKhw[new] = self(map_BKhw[new].to(self.dtype), terms).to(map_BKhw)
        if not config.detail_channels:
            return map_BKhw
        code_BChw = details.unpacked(self.details[rows], config.detail_channels)
        return torch.cat([map_BKhw, F.pixel_unshuffle(code_BChw, 2)], 1)

    def forward(self, map_BKhw: Tensor, colour_B: Tensor) -> Tensor:
        """Return maps_BKhw in other colours, numbers of COLOURS: what the map of a recoloured
        drawing would be."""
        whole = [map_BKhw.mean((2, 3), keepdim=True), map_BKhw.std((2, 3), keepdim=True)]
        told = F.one_hot(colour_B, len(COLOURS)).to(map_BKhw)[..., None, None]
        told = torch.cat([x.expand(-1, -1, *map_BKhw.shape[2:]) for x in (*whole, told)], 1)
        h = F.silu(self.see(torch.cat([map_BKhw, told], 1)))
        return map_BKhw + self.paint(h + F.silu(self.mix(h)))

    @torch.no_grad()
    def remember(self, map_NKhw: Tensor, code_NChw: Tensor | None = None) -> None:
        """Set the codes to those of N maps, and the components to the principal ones; and the
        details to codes_NChw in [-1, 1], whose side is twice that of the maps."""
        if code_NChw is not None:
            self.details.copy_(details.packed(code_NChw))
        flat = map_NKhw.flatten(1).float()
        self.centre.copy_(flat.mean(0))
        _, _, axes = torch.linalg.svd(flat - self.centre, full_matrices=False)
        self.axes.copy_(axes[: len(self.axes)])
        of_NC = (flat - self.centre) @ self.axes.T
        self.step.copy_((3 * of_NC.std(0) / LEVELS).clamp(min=1e-4))
        codes_NC = (of_NC / self.step).round().clamp(-LEVELS, LEVELS) + LEVELS
        self.codes.copy_(packed(codes_NC))


def split(maps: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return (maps_BKhw, codes_BC(2h)(2w) of details) of maps_B(K + D)hw, where K is `channels`."""
    return maps[:, :channels], F.pixel_shuffle(maps[:, channels:], 2)


def packed(codes: Tensor) -> Tensor:
    """Return a byte for each two codes from 0 to 15: (B, C) -> (B, C / 2)."""
    low, high = codes.to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    return low + 16 * high


def unpacked(codes: Tensor) -> Tensor:
    """Return two codes of 4 bits for each byte: (B, C / 2) -> (B, C)."""
    return torch.stack([codes & 15, codes >> 4], 2).flatten(1).float()
