"""Train with large contrastive batches in the memory of small ones.

A contrastive loss couples all images and texts of a batch, but only through their vectors. First,
small chunks are encoded without a graph, and the loss is differentiated with respect to the
vectors. Then each chunk is encoded again, and its part of the gradient goes into the encoders
(GradCache: Gao et al. 2021, §3.2). The gradient is the same. It takes one forward pass more.

Legend: B batch, b a chunk of it, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tower:
    """The function that computes vectors_bD of each chunk. It is called again for the second pass,
    and must return the same values. With `locked`, the encoder gets no gradient, and there is no
    second pass."""

    encode: Callable[[object], Tensor]
    chunks: Sequence[object]
    locked: bool = False


def cached_backward(
    towers: Sequence[Tower],
    loss: Callable[..., Tensor],
    *,
    gather: Callable[[Tensor], tuple[Tensor, int]] | None = None,
) -> Tensor:
    """Add the gradient of `loss(vectors_BD of each encoder…)` to that of the parameters. Return the
    loss.

    A single chunk is encoded once. `gather` collects the vectors of all processes, and returns
    where those of this process begin. Each process computes the whole loss, and sends back its own
    share of the gradient, so that the sum over the processes is the gradient of the whole batch.
    Parameters of the loss itself, such as its scale, get the whole gradient on each process.
    """
    whole, first = [], []
    for tower in towers:
        once = len(tower.chunks) == 1 and not tower.locked
        with torch.set_grad_enabled(once):
            parts = [tower.encode(chunk) for chunk in tower.chunks]
        first.append(parts[0] if once else None)
        mine_BD = torch.cat([part.detach() for part in parts])
        all_BD, start = gather(mine_BD) if gather else (mine_BD, 0)
        all_BD = all_BD.detach().requires_grad_(not tower.locked)
        whole.append((all_BD, start, len(mine_BD)))
    value = loss(*(all_BD for all_BD, _, _ in whole))
    value.backward()
    for tower, graph_bD, (all_BD, start, count) in zip(towers, first, whole):
        if tower.locked:
            continue
        grad_BD = all_BD.grad[start : start + count]
        if graph_bD is not None:
            graph_bD.backward(grad_BD)
            continue
        place = 0
        for chunk in tower.chunks:
            part_bD = tower.encode(chunk)
            part_bD.backward(grad_BD[place : place + len(part_bD)])
            place += len(part_bD)
    return value.detach()
