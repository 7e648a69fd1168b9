"""The reader of the embedded generator: it scores how well a map fits a text.

Shapes: B maps, L tokens, D channels of text, K channels of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class MapReader(ModelMixin, ConfigMixin):
    """Two encoders, trained by CLIP's contrastive loss (Radford et al. 2021) on maps and captions.

    The generator draws several maps of a prompt and keeps the one with the highest score, as unCLIP
    does with its image embeddings (Ramesh et al. 2022, section 2.2).

    Args:
        channels: K, the number of channels of a map.
        side: the number of cells in a side of a map.
        text_channels: D, the number of channels of the text.
        hidden: the width of each encoder.
        embed_dim: the width of the embeddings.
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
        """Return the unit embeddings of maps."""
        return F.normalize(self.map_tower(map_BKhw.flatten(1)), dim=-1)

    def encode_text(self, pooled: Tensor) -> Tensor:
        """Return the unit embeddings of texts, from the result of `pool`."""
        return F.normalize(self.text_tower(pooled), dim=-1)

    def forward(self, map_BKhw: Tensor, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the cosine similarities_B of each map and its text.

        Args:
            map_BKhw: maps.
            hidden_BLD: the last hidden states of the text encoder.
            mask_BL: 1 where there is a token, otherwise 0.
        """
        text = self.encode_text(pool(hidden_BLD, mask_BL))
        return (self.encode_map(map_BKhw) * text).sum(-1)


def tower(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return an encoder with one hidden layer."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, outputs)
    )


def pool(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the hidden state of the last token and the mean of all, in one vector per text."""
    mask = mask_BL.to(hidden_BLD)[..., None]
    mean_BD = (hidden_BLD * mask).sum(1) / mask.sum(1)
    return torch.cat([last_token(hidden_BLD, mask_BL), mean_BD], -1)


def last_token(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the hidden state_BD of the last token of each text."""
    last_B = mask_BL.sum(1).long() - 1
    return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]
