"""Search an index by texts, images and their sums, with filters, full text and diversity.

Shapes: B images, D the width of the embedding.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .. import unrelated
from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..prompts import check_text
from ..rerank import rank
from . import filters, maintenance
from .faults import RAISED, reason
from .places import default_path
from .store import COLUMNS, Store

if TYPE_CHECKING:
    import os

    from ..clip import Clip

RRF = 60  # constant of Cormack et al. 2009
POOL = 5  # this many times the results are candidates for a mixed or diverse answer
FEWEST = 100  # of these columns
RECORD = ("path", "score", "better_than", *COLUMNS[1:])  # keys of a hit, in the order of printing


@dataclass(frozen=True)
class Hit:
    """An image of an answer: its cosine similarity with the query, and its columns. For a single
    text it also has the share of unrelated texts, in [0, 1], whose best score in the index is lower
    (`unrelated`)."""

    path: str
    score: float
    facts: dict[str, Any]
    thumbnail: bytes | None = field(default=None, repr=False)
    better_than: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the values to print, in the order of RECORD."""
        known = {"path": self.path, "score": self.score, "better_than": self.better_than}
        return {**known, **{
            name: value.isoformat(" ") if isinstance(value, datetime) else value
            for name, value in self.facts.items() if name != "path"}}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The hits, the best first, from an index of `total` images."""

    hits: list[Hit]
    total: int


@dataclass(frozen=True)
class Query:
    """A unit embedding_D, and the text if the query is a single text."""

    unit_D: torch.Tensor
    text: str | None = None


def compose(terms: Sequence[tuple[torch.Tensor, float]], *, text: str | None = None) -> Query:
    """Return the query for a weighted sum of unit embeddings (Mikolov et al. 2013).

    The embedding of a text is nearer to other texts than to images. If a query has both a text and
    an image, the text therefore has less effect than its weight suggests: raise its weight if it
    must have more.

    Args:
        terms: pairs of a unit embedding_D and its weight.
        text: the text of the query, if the query is this text alone. The share of unrelated texts
            and `hybrid` need it.

    Raises:
        UsageError: there are no terms, or they cancel each other out.
    """
    if not terms:
        raise UsageError("There is nothing to search for: give a text or --image.")
    if not all(math.isfinite(weight) for _, weight in terms):
        raise UsageError("The weights of a query must be finite numbers.")
    sum_D = torch.stack([weight * unit_D.double() for unit_D, weight in terms]).sum(0)
    if sum_D.norm() < 1e-6:
        raise UsageError("The parts of the query cancel each other out.")
    return Query((sum_D / sum_D.norm()).float(), text)


def encode_texts(clip: Clip, texts: Sequence[str]) -> torch.Tensor:
    """Return the unit embeddings_BD of texts. A long text is read in windows.

    Raises:
        UsageError: a text is empty.
    """
    for text in texts:
        check_text(text)
        if not text.strip():
            raise UsageError("The text is empty: say what to search for.")
    return clip.encode_text(list(texts), long="chunk").float().cpu()


class Index:
    """An index that you can search.

    Args:
        path: the folder of the index; the default index of this user if None.

    Raises:
        UsageError: there is no index.
        ClipguideError: the index cannot be used.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self.store = Store(default_path() if path is None else path)
        self._background: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def model(self) -> str:
        """Return the name of the CLIP that made the index."""
        return self.store.model

    def load(
        self, name: str | None = None, *, device: str = "cpu", trust_pickle: bool = False
    ) -> Clip:
        """Load the CLIP that made the index.

        Args:
            name: another name of the same CLIP, for example if its folder has moved.
            device: the device of the CLIP.
            trust_pickle: whether weights in a pickle may be read.

        Raises:
            UsageError: it does not load, or it is another CLIP.
        """
        from ..clip import load_clip
        from ..clip.base import to_device

        to_device(device)  # a wrong one is not a fault of the CLIP's place
        try:
            clip = load_clip(name or self.model, device=device, trust_pickle=trust_pickle)
        except ClipguideError as error:
            if name is not None:
                raise
            raise type(error)(
                f"The index {self.store.path} was made by the CLIP {self.model}, which does not "
                f"load: {str(error).rstrip('.')}. If it lies elsewhere now, say where with --clip."
            ) from None
        self.check(clip)
        return clip

    def check(self, clip: Clip) -> None:
        """Raise UsageError if another CLIP made the index."""
        self.store.same_model(clip.image_fingerprint, clip.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of an Engine that reads images as the index did."""
        found = re.search(r" alpha (\S+) frames (\d+)( fast \d+)?( icc)?$", self.store.key)
        if found is None:
            return {}
        settings = {"alpha": found[1], "frames": int(found[2])}
        return {**settings, "fast": bool(found[3]), "icc": bool(found[4])}

    def vector(self, path: str) -> torch.Tensor:
        """Return the unit embedding_D of an image of the index.

        Raises:
            UsageError: the image is not in the index.
        """
        vectors = self.store.find("path", [path], ["vector"]).to_pylist()
        if not vectors:
            raise UsageError(f"{path} is not in the index any more: search again.")
        return torch.tensor(vectors[0]["vector"])

    def search(
        self,
        query: Query,
        *,
        k: int = 10,
        offset: int = 0,
        where: str | None = None,
        hybrid: bool = False,
        diversity: float = 0.0,
        compare: bool = True,
    ) -> Answer:
        """Return the nearest images of the index.

        Args:
            query: the query, of `compose`.
            k: the number of images.
            offset: the number of nearest images to skip.
            where: a condition in SQL.
            hybrid: whether the words of captions and prompts count too. The two orders are merged
                by reciprocal rank.
            diversity: from 0 to 1, as in `clipguide.rerank.rank`.
            compare: whether the scores of a text are compared with those of unrelated texts.

        Raises:
            UsageError: an argument is out of range, or does not fit the query.
        """
        if k < 1 or offset < 0:
            raise UsageError(f"At least one image is asked for, not {k} after {offset}.")
        width = self.store.about().width
        if len(query.unit_D) != width:
            raise UsageError(
                f"The query has {len(query.unit_D)} numbers, and the vectors of {self.store.path} "
                f"have {width}."
            )
        if hybrid and query.text is None:
            raise UsageError("--hybrid searches in words: give a text, and no image.")
        condition = None if where is None else filters.checked(where)
        total = self.store.about().count
        last = min(offset + k, max(1, total))  # LanceDB counts in 64 bits
        mixed = hybrid or diversity > 0
        pool = max(FEWEST, POOL * last) if mixed else last
        rows = self._nearest(query, pool, condition, vectors=diversity > 0)
        if hybrid:
            rows = self._mixed(rows, query, pool, condition, vectors=diversity > 0)
        if diversity:
            rows = self._diverse(rows, last, diversity)
        hits = [self._hit(row) for row in rows[offset:last]]
        if compare and hits and query.text is not None:
            hits = self._compared(query, hits)
        return Answer(hits, total)

    def _nearest(
        self, query: Query, count: int, condition: str | None, *, vectors: bool = False
    ) -> list[dict]:
        """Return rows by their vectors, the nearest first."""
        columns = [*COLUMNS, "thumbnail", *(["vector"] if vectors else []), "_distance"]

        def ask(table: Any) -> list[dict]:
            search = table.search(query.unit_D.numpy(), vector_column_name="vector")
            search = search.distance_type("l2")
            filtered = condition is not None
            search = maintenance.sought(self.store, search, count, filtered=filtered)
            if filtered:
                search = search.where(condition, prefilter=True)
            return search.select(columns).to_batches().read_all().to_pylist()

        rows = self._rows(ask, condition)
        for row in rows:
            row["score"] = 1 - row.pop("_distance") / 2  # distance of unit vectors
        return rows

    def _mixed(
        self, rows: list[dict], query: Query, count: int, condition: str | None, *, vectors: bool
    ) -> list[dict]:
        """Return rows by the sum of 1 / (60 + rank) over both orders (Cormack et al. 2009)."""
        from lancedb.query import MultiMatchQuery

        there = self.store.ask(lambda table: table.list_indices())
        indexed = [c for i in there for c in i.columns if c in maintenance.TEXTS]
        if not indexed:
            warnings.warn(
                "No image of the index has a caption or a prompt, so --hybrid is as without it.",
                ClipguideWarning,
                stacklevel=3,
            )
            return rows

        def ask(table: Any) -> list[dict]:
            search = table.search(MultiMatchQuery(query.text, indexed)).limit(count)
            if condition is not None:
                search = search.where(condition, prefilter=True)
            return search.select([*COLUMNS, "thumbnail", "vector", "_score"]).to_arrow().to_pylist()

        worded = self._rows(ask, condition)
        for row in worded:
            del row["_score"]
            row["score"] = float(torch.tensor(row["vector"]) @ query.unit_D)
            if not vectors:
                del row["vector"]
        return fuse([rows, worded])

    def _diverse(self, rows: list[dict], last: int, diversity: float) -> list[dict]:
        if not rows:
            return rows
        unit_BD = torch.tensor([row["vector"] for row in rows])
        score_B = torch.tensor([row.get("rrf", row["score"]) for row in rows])
        return [rows[i] for i in rank(score_B, unit_BD, keep=last, diversity=diversity).best]

    def _rows(self, ask: Callable[[Any], list[dict]], condition: str | None) -> list[dict]:
        """Return the rows of a query. Raise UsageError if LanceDB refuses the condition."""

        def asked(table: Any) -> list[dict]:
            try:
                return ask(table)
            except RAISED as error:
                if condition is None or not isinstance(error, ValueError):
                    raise
                raise filters.misunderstood(reason(error)) from None

        return self.store.ask(asked)

    def _compared(self, query: Query, hits: list[Hit]) -> list[Hit]:
        """Add the share of unrelated texts to hits, if the index has their scores."""
        if self._background is None:
            self._background = maintenance.background(self.store)
        kin = self.store.about().notes.get("kin")
        if self._background is None or kin is None:
            return hits
        word_WD, best_W = self._background
        apart_W = unrelated.apart(query.text, query.unit_D, word_WD, float(kin))
        share = partial(unrelated.share_below, best_W=best_W, apart_W=apart_W)
        return [replace(hit, better_than=share(hit.score)) for hit in hits]

    @staticmethod
    def _hit(row: dict) -> Hit:
        facts = {name: row[name] for name in COLUMNS}
        return Hit(row["path"], row["score"], facts, row["thumbnail"])


def fuse(orders: Sequence[Sequence[dict]]) -> list[dict]:
    """Return the rows of several orders by the sum of 1 / (60 + rank), stored as `rrf`. Equal sums
    keep the order of the first list."""
    sums: dict[str, float] = {}
    first: dict[str, dict] = {}
    for order in orders:
        for number, row in enumerate(order, start=1):
            first.setdefault(row["path"], row)
            sums[row["path"]] = sums.get(row["path"], 0.0) + 1 / (RRF + number)
    return [{**first[path], "rrf": sums[path]} for path in sorted(sums, key=lambda p: -sums[p])]
