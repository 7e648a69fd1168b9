"""The conditions of the embedded generator's U-Net: the map, the text and the style.

Shapes: B images, L tokens, D channels of text, K channels of a map, S styles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conditions(
    map_BKhw: Tensor, hidden_BLD: Tensor, mask_BL: Tensor, label_B: Tensor, styles: int
) -> dict[str, Tensor]:
    """Return the keyword arguments of `UNet2DConditionModel`.

    The cross-attention reads the cells of the map and the tokens of the text. Each of the two has
    its own channels, so one linear layer projects both. The time embedding gets the style and the
    hidden state of the last token.

    Args:
        map_BKhw: maps; a map of zeros means no map.
        hidden_BLD: the last hidden states of the text encoder.
        mask_BL: 1 where there is a token, otherwise 0.
        label_B: the number of the style, from 0 to S - 1.
        styles: S, the number of styles.

    Returns:
        "encoder_hidden_states", B x (h·w + L) x (K + D); "encoder_attention_mask", B x (h·w + L);
        "class_labels", B x (S + D).
    """
    hidden_BLD = hidden_BLD.to(map_BKhw)
    cells = map_BKhw.flatten(2).mT
    tokens = torch.cat(
        [F.pad(cells, (0, hidden_BLD.shape[-1])), F.pad(hidden_BLD, (cells.shape[-1], 0))], 1
    )
    style_BS = F.one_hot(label_B, styles).to(map_BKhw)
    return {
        "encoder_hidden_states": tokens,
        "encoder_attention_mask": torch.cat([mask_BL.new_ones(cells.shape[:2]), mask_BL], 1),
        "class_labels": torch.cat([style_BS, last_token(hidden_BLD, mask_BL)], 1),
    }


def last_token(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the hidden state_BD of the last token of each text."""
    last_B = mask_BL.sum(1).long() - 1
    return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]
