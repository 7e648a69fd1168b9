"""Find near-duplicates among unit vectors: pairs with a large cosine, without comparing all pairs.

An orthogonal projection onto a few directions increases no distance. So vectors that are far apart
in the directions of the largest variance are no pair, and few pairs are left to compare in full. No
pair is lost.

Shapes: N vectors, R of a block, P candidates, M near ones, D the width, K directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

ROWS = 512  # rows of a block of distances
COLUMNS = 1 << 16  # its columns
AXES = 48  # dimensions of the space of the search
SAMPLE = 4096  # vectors that determine its directions
SLACK = 1e-4  # largest rounding error of a squared distance


class Neighbours:
    """Search unit_ND for pairs with a cosine of at least `cosine`.

    `order` are the places of the vectors in the order of the search; by default the fastest order.
    """

    def __init__(
        self, unit_ND: torch.Tensor, cosine: float, order: Sequence[int] | None = None
    ) -> None:
        self.unit_ND, self.cosine = unit_ND, cosine
        self._seen_NK = unit_ND @ _directions(unit_ND)
        self._along_N = self._seen_NK[:, 0].contiguous()
        self._sorted = self._along_N.argsort(stable=True)
        self._order = self._sorted if order is None else torch.as_tensor(order, dtype=torch.long)
        self._left_N = torch.ones(len(unit_ND), dtype=torch.bool)

    def drop(self, places: np.ndarray | Sequence[int]) -> None:
        """Ignore these vectors from now on."""
        self._left_N[torch.as_tensor(places, dtype=torch.long)] = False

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each place that is not dropped, with the other_M that are near it, come later in
        the order, and are not dropped."""
        for start in range(0, len(self._order), ROWS):
            block = self._order[start : start + ROWS]
            block = block[self._left_N[block]]
            near = self._candidates(block) if len(block) else []
            for place, other_P in zip(block.tolist(), near, strict=True):
                if self._left_N[place]:
                    self._left_N[place] = False  # the search is done
                    other_P = other_P[self._left_N[other_P]]
                    cosine_P = self.unit_ND[other_P] @ self.unit_ND[place]
                    yield place, other_P[cosine_P >= self.cosine].numpy()

    def _candidates(self, block_R: torch.Tensor) -> list[torch.Tensor]:
        """Yield for each place the other_P whose projections are near enough."""
        reach = max(0.0, 2 - 2 * self.cosine) + SLACK  # |u - v|² of unit vectors
        if int(self._left_N.sum()) < len(self._sorted) / 2:
            self._sorted = self._sorted[self._left_N[self._sorted]]
        along_P, seen_RK = self._along_N[self._sorted], self._seen_NK[block_R]
        low, high = seen_RK[:, 0].min() - reach**0.5, seen_RK[:, 0].max() + reach**0.5
        begin = int(torch.searchsorted(along_P, low))
        end = int(torch.searchsorted(along_P, high, right=True))
        found: list[list[torch.Tensor]] = [[] for _ in block_R]
        half_R = seen_RK.square().sum(1) / 2
        for first in range(begin, end, COLUMNS):
            place_P = self._sorted[first : min(first + COLUMNS, end)]
            place_P = place_P[self._left_N[place_P]]
            seen_PK = self._seen_NK[place_P]
            near_RP = seen_RK @ seen_PK.T - half_R[:, None] - seen_PK.square().sum(1) / 2
            row_M, column_M = (near_RP >= -reach / 2).nonzero(as_tuple=True)
            parts = place_P[column_M].split(row_M.bincount(minlength=len(block_R)).tolist())
            for one, part in zip(found, parts, strict=True):
                one.append(part)
        return [torch.cat(one) if one else block_R[:0] for one in found]


def _directions(unit_ND: torch.Tensor) -> torch.Tensor:
    """Return the directions_DK of the largest variance, the largest first."""
    some_ND = unit_ND[:: len(unit_ND) // SAMPLE + 1].float()
    some_ND = some_ND - some_ND.mean(dim=0)
    return torch.linalg.eigh(some_ND.T @ some_ND).eigenvectors.flip(1)[:, :AXES].contiguous()
