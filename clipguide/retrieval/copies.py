"""Images that are there more than once: of the same content, or nearly of the same vector.

Shapes: B images, D the width of the embedding.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..rerank import DUPLICATE
from .maintenance import EXACT, stacked
from .places import default_path
from .store import Store

ROWS = 1024  # of a block of cosines
NEIGHBOURS = 50  # that are looked at of each image where there is an index of vectors
NAMES = ("path", "digest", "size", "width", "height", "mtime", "vector")


@dataclass(frozen=True)
class Group:
    """Images that are alike: `exact` if all have the same content. The first is the largest, and
    of these the oldest; `scores` are the cosines with it, by which the others belong to it."""

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
    """The groups of an index, the largest first. A group is an image with those of its content, and
    if `near` those of which the cosine with it is at least `threshold`. The largest images come
    first, and each image belongs to the first that it is like: no group is a chain.

    Nothing is deleted. UsageError for a threshold that is no cosine above 0.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"The cosine of duplicates is above 0 and at most 1, not {threshold}.")
    store = Store(default_path() if path is None else path)
    found = store.ask(
        lambda table: table.search().select(list(NAMES)).with_row_id(True).limit(None).to_arrow()
    )
    unit_BD = stacked(found["vector"]) if len(found) else torch.zeros(0, 1)
    digests = found["digest"].to_pylist()
    rows = found.drop_columns(["vector", "digest"]).to_pylist()
    like: dict[int, set[int]] = defaultdict(set)
    if near:
        for i, j in _near(store, unit_BD, found["_rowid"].to_pylist(), threshold):
            like[i].add(j)
            like[j].add(i)
    same = defaultdict(list)
    for i, digest in enumerate(digests):
        same[digest].append(i)
    order = sorted(range(len(rows)), key=lambda i: _rank(rows[i]))
    groups, taken = [], set()
    for i in order:
        if i in taken:
            continue
        group = sorted(({*same[digests[i]], *like[i]} | {i}) - taken, key=lambda j: _rank(rows[j]))
        if len(group) > 1:
            taken.update(group)
            groups.append(group)
    small = _thumbnails(store, [rows[i]["_rowid"] for group in groups for i in group])
    made = [
        Group(
            [rows[i]["path"] for i in group],
            [rows[i]["size"] for i in group],
            [min(1.0, float(unit_BD[group[0]] @ unit_BD[i])) for i in group],
            [small.get(rows[i]["_rowid"]) for i in group],
            len({digests[i] for i in group}) == 1,
        )
        for group in groups
    ]
    return sorted(made, key=lambda group: (-len(group.paths), group.paths))


def _rank(row: dict[str, Any]) -> tuple:
    """The largest first, then the oldest."""
    return -(row["width"] or 0) * (row["height"] or 0), row["mtime"], row["path"]


def _near(
    store: Store, unit_BD: torch.Tensor, rowids: list[int], threshold: float
) -> Iterator[tuple[int, int]]:
    """Pairs of a cosine of at least `threshold`: all of them, or where there is an index of
    vectors those among each image's nearest."""
    if len(unit_BD) < EXACT:
        for start in range(0, len(unit_BD), ROWS):
            cosine_RB = unit_BD[start : start + ROWS] @ unit_BD[start:].T
            for i, j in (cosine_RB >= threshold).nonzero().tolist():
                if i < j:
                    yield start + i, start + j
        return
    place = {rowid: i for i, rowid in enumerate(rowids)}
    for i, unit_D in enumerate(unit_BD):

        def nearest(table: Any, unit_D: torch.Tensor = unit_D) -> list[int]:
            search = table.search(unit_D.numpy(), vector_column_name="vector")
            search = search.distance_type("l2").distance_range(upper_bound=2 - 2 * threshold + 1e-7)
            search = search.refine_factor(2).limit(NEIGHBOURS).with_row_id(True)
            return search.select(["path", "_distance"]).to_arrow()["_rowid"].to_pylist()

        for rowid in store.ask(nearest):
            if (j := place.get(rowid, i)) != i:
                yield i, j


def _thumbnails(store: Store, rowids: list[int]) -> dict[int, bytes | None]:
    if not rowids:
        return {}
    rows = store.ask(
        lambda table: table.take_row_ids(rowids).select(["thumbnail"]).with_row_id().to_arrow()
    )
    return dict(zip(rows["_rowid"].to_pylist(), rows["thumbnail"].to_pylist(), strict=True))
