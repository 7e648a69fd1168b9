"""Find images that an index has more than once: with the same content, or with nearly the same
vector.

Shapes: B images, D the width of the embedding.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..near import Neighbours
from ..rerank import DUPLICATE
from .maintenance import stacked
from .places import default_path
from .store import Store

NAMES = ("path", "digest", "size", "width", "height", "mtime", "vector")


@dataclass(frozen=True)
class Group:
    """Images that are alike. `exact` is True if all have the same content. The first is the
    largest, and the oldest of these. `scores` are the cosine similarities of the others with it."""

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
    """Return the groups of duplicates of an index, the largest group first.

    A group is an image and those with the same content. With `near`, it also has the images whose
    cosine similarity with it is at least `threshold`. Images are taken by size, the largest first,
    and each joins the first group that it fits, so no group is a chain. Nothing is deleted.

    Raises:
        UsageError: the threshold is not a cosine similarity above 0.
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
    same = defaultdict(list)
    for i, digest in enumerate(digests):
        same[digest].append(i)
    order = sorted(range(len(rows)), key=lambda i: _rank(rows[i]))
    around = Neighbours(unit_BD, threshold, order) if near and rows else None
    groups, taken = [], set()
    for i, like in around or ((i, ()) for i in order):
        if i in taken:
            continue
        group = {i, *same[digests[i]], *map(int, like)} - taken
        if len(group) > 1:
            taken |= group
            groups.append(sorted(group, key=lambda j: _rank(rows[j])))
            if around:
                around.drop(list(group))
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
    """Return the sort key: the largest first, then the oldest."""
    return -(row["width"] or 0) * (row["height"] or 0), row["mtime"], row["path"]


def _thumbnails(store: Store, rowids: list[int]) -> dict[int, bytes | None]:
    if not rowids:
        return {}
    rows = store.ask(
        lambda table: table.take_row_ids(rowids).select(["thumbnail"]).with_row_id().to_arrow()
    )
    return dict(zip(rows["_rowid"].to_pylist(), rows["thumbnail"].to_pylist(), strict=True))
