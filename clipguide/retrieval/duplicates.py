"""Pictures that are there more than once: of the same content, or nearly of the same vector.

Shapes: B pictures, D the width of the embedding.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import UsageError
from ..rerank import DUPLICATE
from .settle import EXACT, _stack
from .store import Store, default_path

ROWS = 1024  # of a block of cosines
NEIGHBOURS = 50  # that are looked at of each picture where there is an index of vectors


@dataclass(frozen=True)
class Group:
    """Pictures that are alike: `exact` if all have the same content. The first is the largest, and
    of these the oldest; `scores` are cosines with it."""

    paths: list[str]
    sizes: list[int]
    scores: list[float]
    thumbnails: list[bytes | None]
    exact: bool


def duplicates(
    path: str | os.PathLike | None = None,
    *,
    near: bool = True,
    threshold: float = DUPLICATE,
) -> list[Group]:
    """The groups of an index, the largest first. Pictures of one digest are alike, and if `near`
    those of a cosine of at least `threshold`, and all that hang together by such pairs.

    Nothing is deleted. UsageError for a threshold that is no cosine above 0.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"The cosine of duplicates is above 0 and at most 1, not {threshold}.")
    store = Store(default_path() if path is None else path)
    with store.told():
        names = ["path", "digest", "size", "width", "height", "mtime", "vector"]
        query = store.table.search().select(names).with_row_id(True)
        found = query.limit(None).to_arrow()
        unit_BD = _stack(found["vector"]) if len(found) else torch.zeros(0, 1)
        digests = found["digest"].to_pylist()
        parent = _Forest(len(found))
        first: dict[bytes, int] = {}
        for i, digest in enumerate(digests):
            parent.join(first.setdefault(digest, i), i)
        if near:
            for i, j in _near(store, unit_BD, found["_rowid"].to_pylist(), threshold):
                parent.join(i, j)
        groups = defaultdict(list)
        for i in range(len(found)):
            groups[parent.root(i)].append(i)
        alike = [group for group in groups.values() if len(group) > 1]
        rows = found.drop_columns(["vector", "digest"]).to_pylist()
        small = _thumbnails(store, [rows[i]["_rowid"] for group in alike for i in group])
    made = []
    for group in alike:
        group.sort(key=lambda i: (-rows[i]["width"] * rows[i]["height"], rows[i]["mtime"],
                                  rows[i]["path"]))  # fmt: skip
        made.append(
            Group(
                [rows[i]["path"] for i in group],
                [rows[i]["size"] for i in group],
                [min(1.0, float(unit_BD[group[0]] @ unit_BD[i])) for i in group],
                [small[rows[i]["_rowid"]] for i in group],
                len({digests[i] for i in group}) == 1,
            )
        )
    return sorted(made, key=lambda group: (-len(group.paths), group.paths))


class _Forest:
    """Sets that are joined."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        self._parent[self.root(j)] = self.root(i)


def _near(
    store: Store, unit_BD: torch.Tensor, rowids: list[int], threshold: float
) -> Iterator[tuple[int, int]]:
    """Pairs of a cosine of at least `threshold`: all of them, or where there is an index of
    vectors those among each picture's nearest."""
    if len(unit_BD) < EXACT:
        for start in range(0, len(unit_BD), ROWS):
            cosine_RB = unit_BD[start : start + ROWS] @ unit_BD[start:].T
            for i, j in (cosine_RB >= threshold).nonzero().tolist():
                if i < j:
                    yield start + i, start + j
        return
    place = {rowid: i for i, rowid in enumerate(rowids)}
    for i, unit_D in enumerate(unit_BD):
        search = store.table.search(unit_D.numpy(), vector_column_name="vector")
        search = search.distance_type("l2").distance_range(upper_bound=2 - 2 * threshold + 1e-7)
        search = search.refine_factor(2).limit(NEIGHBOURS).with_row_id(True)
        for row in search.select(["path", "_distance"]).to_arrow()["_rowid"].to_pylist():
            yield i, place[row]


def _thumbnails(store: Store, rowids: list[int]) -> dict[int, bytes | None]:
    if not rowids:
        return {}
    rows = store.table.take_row_ids(rowids).select(["thumbnail"]).with_row_id().to_arrow()
    return dict(zip(rows["_rowid"].to_pylist(), rows["thumbnail"].to_pylist(), strict=True))
