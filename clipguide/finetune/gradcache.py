"""Big contrastive batches in the memory of small ones.

A contrastive loss couples all images and texts of a batch, but only through their vectors. So
they are encoded in small chunks without a graph, the loss is taken back to the vectors, and each
chunk is encoded once more, its part of the gradient sent on into the towers (GradCache: Gao et al.
2021, §3.2). The gradient is the same; the time is that of one forward pass more.

Legend: B batch, b a chunk of it, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tower:
    """What makes vectors_bD of each chunk. Both are called anew for the second pass, and must give
    the same. With `locked`, no gradient goes into it, and there is no second pass."""

    encode: Callable[[object], Tensor]
    chunks: Sequence[object]
    locked: bool = False


def cached_backward(
    towers: Sequence[Tower],
    loss: Callable[..., Tensor],
    *,
    gather: Callable[[Tensor], tuple[Tensor, int]] | None = None,
) -> Tensor:
    """Adds the gradient of `loss(vectors_BD of each tower…)` to the parameters' -> the loss.

    One chunk alone is encoded once. `gather` makes of this process's vectors those of all, and
    says where its own begin: each process then takes the whole loss, and sends back its own share
    of the vectors' gradient, so that the sum over processes is the gradient of the whole batch
    (what only the loss sees, such as its scale, gets the whole gradient on each).
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
