"""Train only the head: a linear map of image embeddings, fitted to vectors that are computed once.

Shapes: B images, T different texts, D the width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = tuple(10.0**e for e in range(-5, 2))


@dataclass(frozen=True)
class Head:
    """The map M of image_BD · M, and the penalty that was chosen."""

    map_DD: Tensor
    penalty: float


def fit_head(
    image_BD: Tensor,
    text_TD: Tensor,
    target_B: Tensor,
    *,
    scale: float,
    penalty: float,
) -> Head:
    """Minimise the mean cross-entropy of the texts + penalty/2 · |M - I|², by L-BFGS in float64.

    logit_BT = scale · u W^T with u = f M / |f M|. M starts at I, which is the zero-shot classifier.
    The scale is fixed, because separable images would raise it without limit. image_BD have length
    1.
    """
    image_BD, text_TD = image_BD.double().cpu(), text_TD.double().cpu()
    move_DD = torch.zeros(image_BD.shape[1], image_BD.shape[1]).double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [move_DD],
        max_iter=200,
        history_size=20,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        unit_BD = F.normalize(image_BD + image_BD @ move_DD, dim=-1)
        logit_BT = scale * unit_BD @ text_TD.T
        value = F.cross_entropy(logit_BT, target_B) + penalty / 2 * move_DD.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    map_DD = torch.eye(len(move_DD)).double() + move_DD.detach()
    return Head(map_DD.float(), penalty)


def choose_head(
    train: tuple[Tensor, Tensor, Tensor],
    test: tuple[Tensor, Tensor, Tensor],
    *,
    scale: float,
    penalties: Sequence[float] = PENALTIES,
) -> Head:
    """Return the head of the penalty with the best accuracy on unseen images. Equal heads are
    compared by cross-entropy. Both arguments are (image_BD, text_TD, target_B)."""

    def worth(head: Head) -> tuple[float, float]:
        image_BD, text_TD, target_B = test
        unit_BD = F.normalize(image_BD @ head.map_DD, dim=-1)
        logit_BT = scale * unit_BD @ text_TD.T
        right = (logit_BT.argmax(1) == target_B).double().mean().item()
        return right, -F.cross_entropy(logit_BT, target_B).item()

    return max((fit_head(*train, scale=scale, penalty=p) for p in penalties), key=worth)
