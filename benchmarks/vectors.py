"""Measure how fast the ten nearest of many vectors are found, in comparison with faiss and usearch.

    python -m benchmarks.vectors --count 100000            # minutes
    python -m benchmarks.vectors --count 1000000 --keep-index DIR   # built once; then it only asks
    python -m benchmarks.vectors --count 10000000 --no-peers --thumbnail 100   # 25 GB of disk

Each adds its figures to benchmarks/search.json. The vectors are synthetic, and made one chunk at a
time, so that only one chunk is in memory. They lie on a surface of 16 dimensions in a space of 512:
cosines of random waves over 16 normal numbers (Rahimi & Recht 2007), and a common mean. The surface
is fitted to the embedded CLIP's embeddings of images. Among 700 vectors, the number of neighbours
gives a dimension of 15.3 (Levina & Bickel 2004). For 700 photographs it is 15.7, and for 1,000
training drawings 11. The tenth neighbour of a vector is 0.76 times as far away as the median
vector; for photographs this is 0.69, and for drawings 0.74. 13 directions have half of the
variance, and 127 have nine tenths; for photographs these are 19 and 90. The dimension does not
change with the number of vectors; that of 15,000 drawings falls to 6. "images" are new samples from
the same distribution. "texts" are samples with twice the noise and without most of the mean,
because the embedding of a text lies apart from those of images.

The other programs search the same vectors in the same run, with the vectors in memory, each with
the least effort of those tried that reaches the recall. Ours is the whole path: from a query to an
answer with its columns and thumbnails from disk. Milliseconds are given by the clock and by the
processor, because another program may run. Queries are searched one at a time.
"Cold" are the first hundred queries, when nothing of our index is in the disk cache. The other
queries are asked once before they are measured, as those of the peers are at lesser efforts.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.common import save
from clipguide.retrieval import Index, Query, maintenance
from clipguide.retrieval.store import Store

WIDTH, TOP, RECALL = 512, 10, 0.95
CHUNK = 20_000
EFFORTS = (16, 32, 64, 128, 256, 512, 1024)
DIMENSIONS, ROUGHNESS = 16, 0.25  # of the surface that the vectors lie on
app = typer.Typer(add_completion=False, help=__doc__)


class Made:
    """This number of unit vectors, in chunks that are the same at each call."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        random = np.random.default_rng(seed)
        wave_MD = ROUGHNESS * random.standard_normal((DIMENSIONS, WIDTH))
        self.wave_MD = wave_MD.astype(np.float32)
        self.phase_D = random.uniform(0, 2 * np.pi, WIDTH).astype(np.float32)
        turn_DD, _ = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))
        self.shared_D = turn_DD[:, -1].astype(np.float32)
        # the mean of cos(p + x) over a normal x of variance v is cos(p) exp(-v / 2)
        half_D = np.exp(-np.square(wave_MD).sum(0) / 2)
        self.mean_D = (half_D * np.cos(self.phase_D)).astype(np.float32)
        second_D = 0.5 + 0.5 * half_D**4 * np.cos(2 * self.phase_D)
        self.spread = np.float32(np.sqrt((second_D - self.mean_D**2).sum()))

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the place of the first vector of each chunk, and its unit vectors_BD."""
        for start in range(0, self.count, CHUNK):
            random = np.random.default_rng([self.seed, 1, start])
            count = min(CHUNK, self.count - start)
            yield start, unit(self._drawn(random, count) + self.shared_D)

    def queries(self, count: int) -> dict[str, np.ndarray]:
        """Return query_QD of images and of texts."""
        images_QD = self._drawn(np.random.default_rng([self.seed, 2]), count) + self.shared_D
        random = np.random.default_rng([self.seed, 3])
        texts_QD = self._drawn(random, count) + np.float32(0.3) * self.shared_D
        noise_QD = sum(self._drawn(random, count) for _ in range(8)) / np.float32(8**0.5)
        return {"images": unit(images_QD), "texts": unit(texts_QD + np.float32(0.7) * noise_QD)}

    def _drawn(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Return points of the surface, with mean 0 and mean square length 1."""
        place_BM = random.standard_normal((count, DIMENSIONS), np.float32)
        return (np.cos(place_BM @ self.wave_MD + self.phase_D) - self.mean_D) / self.spread


def unit(vector_BD: np.ndarray) -> np.ndarray:
    return vector_BD / np.linalg.norm(vector_BD, axis=1, keepdims=True)


class Truth:
    """The places_QK of the nearest of all chunks that were added, by comparing every vector."""

    def __init__(self, query_QD: np.ndarray) -> None:
        self.query_QD = query_QD
        self.score_QK = np.empty((len(query_QD), 0))
        self.place_QK = np.empty((len(query_QD), 0), np.int64)

    def add(self, start: int, unit_BD: np.ndarray) -> None:
        score_QB = self.query_QD @ unit_BD.T
        place_QK = np.argpartition(-score_QB, TOP, axis=1)[:, :TOP]
        scores = np.concatenate([self.score_QK, np.take_along_axis(score_QB, place_QK, 1)], 1)
        places = np.concatenate([self.place_QK, place_QK + start], 1)
        order = np.argsort(-scores, axis=1)[:, :TOP]
        self.score_QK = np.take_along_axis(scores, order, 1)
        self.place_QK = np.take_along_axis(places, order, 1)


@dataclass(frozen=True)
class Opened:
    """An index of a peer in memory. `at(effort)` returns the function that searches it, `says`
    names the effort."""

    at: Callable[[int], Callable[[np.ndarray], list[int]]]
    says: str


def timed(ask: Callable[[np.ndarray], list[int]], query_QD: np.ndarray, truth_QK: np.ndarray):
    """Return the milliseconds of each query, by the clock and by the processor, and recall@10."""
    clock, processor, hits = [], [], 0
    for query_D, truth_K in zip(query_QD, truth_QK, strict=True):
        begin, begun = time.perf_counter(), time.process_time()
        found = ask(query_D)
        processor.append(1000 * (time.process_time() - begun))
        clock.append(1000 * (time.perf_counter() - begin))
        hits += len(set(found) & set(truth_K.tolist()))
    return clock, processor, hits / truth_QK.size


def row(name: str, effort: object, clock: list, processor: list, recall: float) -> dict:
    p50, p99 = np.percentile(clock, (50, 99)).tolist()
    facts = {"effort": effort, "p50 ms": round(p50, 2), "p99 ms": round(p99, 2)}
    facts["p50 processor ms"] = round(float(np.median(processor)), 2)
    facts["recall@10"] = round(recall, 4)
    typer.echo(f"{name:28} {facts}")
    return facts


def least(name: str, opened: Opened, query_QD: np.ndarray, truth_QK: np.ndarray) -> dict:
    """Return the first effort that reaches the recall, or the last one."""
    for effort in EFFORTS:
        clock, processor, recall = timed(opened.at(effort), query_QD, truth_QK)
        if recall >= RECALL:
            break
    return row(name, opened.says.format(effort), clock, processor, recall)


def fill(path: Path, made: Made, truths: list[Truth], thumbnail: int) -> None:
    """Fill a table with the vectors, each with a path and a thumbnail of random bytes. The truths
    see them on the way."""
    import pyarrow as pa

    store = Store(path, make=True)
    store.create(WIDTH, key="0 float32 alpha white frames 1", model="made")
    schema, random = store.table.schema, np.random.default_rng([made.seed, 4])

    def batches() -> Iterator[pa.RecordBatch]:
        for start, unit_BD in made.chunks():
            for truth in truths:
                truth.add(start, unit_BD)
            count = len(unit_BD)
            small = random.bytes(thumbnail * count)
            known = {
                "path": pa.array([f"{i}" for i in range(start, start + count)]),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(unit_BD.ravel()), WIDTH),
                "thumbnail": pa.array(
                    [small[i * thumbnail : (i + 1) * thumbnail] for i in range(count)], pa.binary()
                ),
            }
            columns = [known.get(f.name, pa.nulls(count, f.type)) for f in schema]
            yield pa.record_batch(columns, schema=schema)

    store.table.add(pa.RecordBatchReader.from_batches(schema, batches()))


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size(path: Path) -> int:
    """Return the MiB on disk."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return round(sum(p.stat().st_size for p in files if p.is_file()) / 2**20)


@app.command()
def vectors(
    count: Annotated[int, typer.Option(min=1000)] = 1_000_000,
    queries: Annotated[int, typer.Option(min=10)] = 300,
    peers: bool = True,
    keep: bool = True,
    seed: int = 0,
    thumbnail: Annotated[int, typer.Option(min=0, help="Bytes of each.")] = 4000,
    keep_index: Annotated[
        Path | None, typer.Option(help="Where indexes are kept, so that the next call only asks.")
    ] = None,
    build_only: Annotated[bool, typer.Option("--build-only", help="Ask nothing.")] = False,
    built: Annotated[bool, typer.Option(help="Ask the peers that are built, build none.")] = False,
) -> dict:
    """Measure time and recall of the ten nearest, also for faiss and usearch."""
    with contextlib.ExitStack() as stack:
        home = keep_index or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = home / f"{count}-{queries}-{seed}-{thumbnail}"
        facts = build(folder, count, queries, seed, thumbnail, peers and not built)
        if build_only:
            return facts
        asked = np.load(folder / "queries.npz")

        def ask(query_D: np.ndarray) -> list[int]:
            answer = index.search(Query(torch.from_numpy(query_D)), k=TOP, compare=False)
            return [int(hit.path) for hit in answer.hits]

        forget(folder / "db")
        index = Index(folder / "db")
        effort = kind_of(count)
        first = timed(ask, asked["images"][:100], asked["images truth"][:100])
        facts["clipguide, cold"] = row("clipguide, cold", effort, *first)
        for kind in ("images", "texts"):
            timed(ask, asked[kind], asked[f"{kind} truth"])  # what they read is in the disk cache
            found = timed(ask, asked[kind], asked[f"{kind} truth"])
            facts[f"clipguide, {kind}"] = row(f"clipguide, {kind}", effort, *found)
        for name, peer in PEERS.items() if peers else ():
            if not (folder / peer.file).exists():
                typer.echo(f"{name} is not built")
                continue
            opened = peer.opened(folder / peer.file)
            for kind in ("images", "texts"):
                which = f"{name}, {kind}"
                facts[which] = least(which, opened, asked[kind], asked[f"{kind} truth"])
                ours, theirs = (
                    facts[one]["p50 processor ms"] for one in (f"clipguide, {kind}", which)
                )
                facts[f"clipguide ÷ {which}"] = round(ours / theirs, 1)
            del opened  # one of them is in memory at a time
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        facts["highest MiB"] = round(highest / 1024)
    if keep:
        save(f"vectors {count}", facts)
    return facts


def kind_of(count: int) -> str:
    """Return the kind of our index for this number, and how much of it a query reads."""
    if count < maintenance.EXACT:
        return "none: all are compared"
    if count < maintenance.ONE_GRAPH:
        return f"graph, {maintenance.KEPT} kept"
    return f"{maintenance.probes(count)} of {maintenance.cells(count)} cells"


def build(
    folder: Path, count: int, queries: int, seed: int, thumbnail: int, peers: bool
) -> dict[str, object]:
    """Build what is missing in a folder: the table and the queries. Return facts about it."""
    folder.mkdir(parents=True, exist_ok=True)
    noted, made = folder / "facts.json", Made(count, seed=seed)
    facts: dict = json.loads(noted.read_text()) if noted.exists() else {}
    facts.update(count=count, thumbnail=thumbnail)

    def stage(file: str, make: Callable[[Path], None]) -> None:
        """Make a file or folder unless it is there, whole or not at all."""
        if (folder / file).exists():
            return
        part = folder / f"part-{file}"
        shutil.rmtree(part, ignore_errors=True)
        begin, begun = time.perf_counter(), time.process_time()
        make(part)
        facts[f"{file} made in s"] = round(time.perf_counter() - begin, 1)
        facts[f"{file} made in processor s"] = round(time.process_time() - begun, 1)
        facts[f"{file} MiB"] = size(part)
        part.rename(folder / file)
        noted.write_text(json.dumps(facts))
        typer.echo(f"{file}: {facts[f'{file} made in s']} s, {facts[f'{file} MiB']} MiB")

    def table(part: Path) -> None:
        asked = made.queries(queries)
        truths = {kind: Truth(query_QD) for kind, query_QD in asked.items()}
        fill(part, made, list(truths.values()), thumbnail)
        known = {f"{kind} truth": truth.place_QK for kind, truth in truths.items()}
        with (folder / "queries.npz").open("wb") as stream:
            np.savez(stream, **asked, **known)

    stage("db", table)
    if count >= maintenance.EXACT and facts.get("index") != kind_of(count):
        begin, begun = time.perf_counter(), time.process_time()
        maintenance.index_vectors(Index(folder / "db").store)
        facts["index made in s"] = round(time.perf_counter() - begin, 1)
        facts["index made in processor s"] = round(time.process_time() - begun, 1)
        facts["index"] = kind_of(count)
        noted.write_text(json.dumps(facts))
    for peer in PEERS.values() if peers else ():
        stage(peer.file, lambda part, peer=peer: peer.make(made, part))
    return facts


class Hnsw:
    """The HNSW of faiss with 32 links and default settings, kept in a file."""

    file = "faiss-hnsw.index"

    @staticmethod
    def make(made: Made, path: Path) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
        for _, unit_BD in made.chunks():
            index.add(unit_BD)
        faiss.write_index(index, str(path))

    @staticmethod
    def opened(path: Path) -> Opened:
        import faiss

        index = faiss.read_index(str(path))

        def at(effort: int) -> Callable:
            index.hnsw.efSearch = effort
            return lambda query_D: index.search(query_D[None], TOP)[1][0].tolist()

        return Opened(at, "graph, {} kept")


class IvfPq:
    """The IVF-PQ of faiss with 64 bytes, with ten times as many candidates compared by their full
    vectors."""

    file = "faiss-ivfpq.index"

    @staticmethod
    def make(made: Made, path: Path) -> None:
        import faiss

        cells = round(made.count**0.5)
        index = faiss.index_factory(WIDTH, f"IVF{cells},PQ64,RFlat", faiss.METRIC_INNER_PRODUCT)
        some, chunks = [], made.chunks()
        while sum(map(len, some)) < min(made.count, max(50 * cells, 20_000)):
            some.append(next(chunks)[1])
        index.train(np.concatenate(some))
        for _, unit_BD in made.chunks():
            index.add(unit_BD)
        faiss.write_index(index, str(path))

    @staticmethod
    def opened(path: Path) -> Opened:
        import faiss

        index = faiss.read_index(str(path))
        index.k_factor = 10
        cells = faiss.extract_index_ivf(index)

        def at(effort: int) -> Callable:
            cells.nprobe = effort
            return lambda query_D: index.search(query_D[None], TOP)[1][0].tolist()

        return Opened(at, f"{{}} of {cells.nlist} cells")


class Usearch:
    """The HNSW of usearch with default settings, kept in a file: numbers of bfloat16, where the
    processor computes in them."""

    file = "usearch.index"

    @staticmethod
    def make(made: Made, path: Path) -> None:
        import usearch.index

        index = usearch.index.Index(ndim=WIDTH, metric="ip")
        for start, unit_BD in made.chunks():
            index.add(np.arange(start, start + len(unit_BD)), unit_BD)
        index.save(str(path))

    @staticmethod
    def opened(path: Path) -> Opened:
        import usearch.index

        index = usearch.index.Index.restore(str(path))

        def at(effort: int) -> Callable:
            index.expansion_search = effort
            return lambda query_D: index.search(query_D, TOP).keys.tolist()

        return Opened(at, "graph, {} kept")


PEERS = {"faiss HNSW": Hnsw, "faiss IVF-PQ": IvfPq, "usearch HNSW": Usearch}

if __name__ == "__main__":
    app()
