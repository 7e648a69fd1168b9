"""Says how well a map of the embedded generator agrees with a text.

Shapes: B maps, L tokens, D channels of text, K channels of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class MapReader(ModelMixin, ConfigMixin):
    """Two towers, trained with CLIP's contrastive loss (Radford et al. 2021) on maps and captions.

    The generator draws several maps of a prompt and keeps the one that scores highest, as unCLIP
    does with its image embeddings (Ramesh et al. 2022, section 2.2).

    Args:
        channels: K.
        side: cells of a map's side.
        text_channels: D.
        hidden: width of each tower.
        embed_dim: width of the vectors that are compared.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 28,
        side: int = 4,
        text_channels: int = 192,
        hidden: int = 320,
        embed_dim: int = 192,
    ) -> None:
        super().__init__()
        self.map_tower = tower(channels * side**2, hidden, embed_dim)
        self.text_tower = tower(2 * text_channels, hidden, embed_dim)

    def encode_map(self, map_BKhw: Tensor) -> Tensor:
        """Unit vectors of maps."""
        return F.normalize(self.map_tower(map_BKhw.flatten(1)), dim=-1)

    def encode_text(self, pooled: Tensor) -> Tensor:
        """Unit vectors of texts, of what `pool` returns."""
        return F.normalize(self.text_tower(pooled), dim=-1)

    def forward(self, map_BKhw: Tensor, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Cosines_B of each map and its text.

        Args:
            map_BKhw: maps.
            hidden_BLD: the text encoder's last hidden states.
            mask_BL: 1 where there is a token.
        """
        text = self.encode_text(pool(hidden_BLD, mask_BL))
        return (self.encode_map(map_BKhw) * text).sum(-1)


def tower(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, outputs)
    )


def pool(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The last token's state and the mean of all, as one vector a text."""
    mask = mask_BL.to(hidden_BLD)[..., None]
    mean_BD = (hidden_BLD * mask).sum(1) / mask.sum(1)
    return torch.cat([last_token(hidden_BLD, mask_BL), mean_BD], -1)


def last_token(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The state_BD of each text's last token."""
    last_B = mask_BL.sum(1).long() - 1
    return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]
