"""Maintain a table after writing: compact it, index paths, vectors and words, and score unrelated
texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import unrelated
from ..errors import ClipguideWarning
from . import faults
from .store import WORDS, Store, tables

if TYPE_CHECKING:
    from ..clip import Clip

EXACT = 50_000  # below this number of rows, every vector is compared
LOOKED_UP = 20_000  # from this number of rows, paths and digests have an index
GROWN = 2.0  # the index is trained again at this many times the rows that it was trained on
# the scores of unrelated texts are renewed if the number of rows changes by this factor
DRIFT = 1.1
ONE_GRAPH = 250_000  # below this number of rows all vectors are in one graph, above it in cells
GRAPH, CELLS = "graph", "cells"
LINKS, CANDIDATES = 16, 100  # neighbours of a vector in the graph, and the candidates for them
KEPT = 200  # candidates of a search in the graph (its ef)
FEWEST = 32  # cells that a query reads
SAMPLED = 64  # vectors per cell for the training of the cells
REFINE, REFINE_GRAPH = 6, 2  # times as many are compared by their full vectors
TEXTS = ("caption", "prompt")
KEYS = ("path", "digest")
OLD = timedelta(hours=1)  # older versions of the table are deleted


def maintain(store: Store, clip: Clip, *, changed: bool) -> None:
    """Do the maintenance that is due. If it is killed, the next run does it."""
    count = store.count()
    notes = store.notes()
    if not changed and notes.get("maintained") == str(count):
        return
    compact(store)
    store.write(lambda table: _index_scalars(table, count))
    if count >= EXACT and count >= GROWN * int(notes.get("trained", 0)):
        index_vectors(store)
        store.note(trained=str(count))
    known = int(notes.get("compared", 0))
    if not known / DRIFT <= count <= known * DRIFT:
        compare(store, clip, count)
    store.note(maintained=str(count))


def compact(store: Store) -> None:
    """Merge many files into few, update the indexes, and delete old versions."""
    store.write(lambda table: table.optimize(cleanup_older_than=OLD))


def index_vectors(store: Store) -> None:
    """Make an index of many vectors. benchmarks/README.md has the measurements.

    Below ONE_GRAPH it is a graph of near neighbours (HNSW, Malkov & Yashunin 2020) on 8-bit
    numbers. A program reads it whole before its first answer, 0.7 kB a vector. So there are cells
    from there on, and in them a bit a number (RaBitQ, Gao & Long 2024), of which a query reads
    a few: see `probes`.
    """
    from lancedb.index import HnswSq, IvfRq

    count = store.count()
    if count < ONE_GRAPH:
        kind = GRAPH
        config = HnswSq(
            distance_type="l2", num_partitions=1, m=LINKS, ef_construction=CANDIDATES
        )
    else:
        kind = CELLS
        config = IvfRq(distance_type="l2", num_partitions=cells(count), sample_rate=SAMPLED)
    store.write(lambda table: table.create_index("vector", config=config, replace=True))
    store.note(kind=kind)


def sought(store: Store, search: Any, count: int, *, filtered: bool) -> Any:
    """Return a search for the `count` nearest. It sets how much of the index is read, and how many
    times as many candidates are compared by their full vectors."""
    about = store.about()
    graph = about.notes.get("kind") == GRAPH
    least = 1 if graph else probes(about.count)
    refine = REFINE_GRAPH if graph else REFINE
    search = search.refine_factor(refine).limit(count)
    if graph:
        search = search.ef(max(KEPT, refine * count))
    if filtered:  # the results may be in any cell: 0 means all
        return search.minimum_nprobes(least).maximum_nprobes(0)
    return search.nprobes(least)


def cells(count: int) -> int:
    """Return the number of cells: four times the square root of the number of vectors. For the same
    recall, a query then reads half as many vectors as with the square root."""
    return max(1, round(4 * count**0.5))


def probes(count: int) -> int:
    """Return the number of cells that a query reads: 190 of 4,000 for a million vectors, with a
    recall of at least 0.97 for the ten nearest (`python -m benchmarks.vectors`). It grows with the
    fourth root of the number of vectors, so the number of compared vectors, of 64 bytes each, grows
    with the power 3/4. With a fixed number of cells, recall would fall as the collection grows."""
    return max(FEWEST, round(6 * count**0.25))


def compare(store: Store, clip: Clip, count: int) -> None:
    """Store the scores of unrelated texts in the table: see `unrelated`."""
    if not count:
        return
    known = background(store)
    if known is None:
        names = unrelated.words()
        with warnings.catch_warnings():  # a shortened name is enough
            warnings.simplefilter("ignore", ClipguideWarning)
            word_WD = clip.encode_text(names).float().cpu()
        store.note(kin=f"{unrelated.kin(word_WD):.6f}")
    else:
        word_WD, _ = known
    _keep(store, word_WD, unrelated.best(vectors(store), word_WD))
    store.note(compared=str(count))


def background(store: Store) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the unit vectors_WD of unrelated nouns, and the best_W score of each in the table, if
    they are stored and complete."""
    try:
        known = store.db.open_table(WORDS).to_arrow()
        best_W = torch.tensor(known["best"].to_pylist())
    except (*faults.RAISED, KeyError):  # missing, incomplete or old: make it again
        return None
    if known["word"].to_pylist() != unrelated.words():
        return None
    return stacked(known["vector"]), best_W


def _keep(store: Store, word_WD: torch.Tensor, best_W: torch.Tensor) -> None:
    import pyarrow as pa

    kind = pa.list_(pa.float32(), word_WD.shape[1])
    flat = pa.array(word_WD.numpy().reshape(-1))
    columns = {
        "word": unrelated.words(),
        "vector": pa.FixedSizeListArray.from_arrays(flat, type=kind),
        "best": pa.array(best_W.numpy()),
    }
    try:
        there = WORDS in tables(store.db)
        store.db.create_table(WORDS, pa.table(columns), mode="overwrite" if there else "create")
    except faults.RAISED as error:
        if faults.kind(error) != "conflict":  # another program writes the same index
            raise store.fault(error, writing=True) from error


def vectors(store: Store) -> Iterator[torch.Tensor]:
    """Yield all vectors, in chunks unit_BD."""
    for batch in store.batches(["vector"]):
        if len(batch):
            yield stacked(batch["vector"])


def stacked(column: Any) -> torch.Tensor:
    """Return a column of vectors as unit_BD."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat, np.float32).reshape(len(column), -1))


def _index_scalars(table: Any, count: int) -> None:
    """Make full-text indexes of the text columns. If there are many rows, also index paths and
    digests. optimize keeps them up to date."""
    from lancedb.index import FTS, BTree

    there = {column for index in table.list_indices() for column in index.columns}
    for name in TEXTS:
        if name not in there and table.count_rows(f"{name} IS NOT NULL"):
            table.create_index(name, config=FTS())
    for name in KEYS if count >= LOOKED_UP else ():
        if name not in there:
            table.create_index(name, config=BTree())
