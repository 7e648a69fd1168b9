"""How fast the search is, what indexing costs beside embedding, and how absent things score.

    python -m benchmarks.search vectors                    # a million vectors; hours to build
    python -m benchmarks.search vectors --keep-index DIR   # built once; then two minutes
    python -m benchmarks.search vectors --count 60000 --clusters 600
    python -m benchmarks.search overhead --clip mini       # indexing ÷ embedding alone
    python -m benchmarks.search unchanged                  # 100,000 files that have not changed
    python -m benchmarks.search listing                    # the driver's memory, 10^4 to 10^7 names
    python -m benchmarks.search absent                     # needs python -m training.data build
    python -m benchmarks.search photographs                # 50 that packages hold, ten queries

Each adds its figures to benchmarks/search.json. Vectors: clusters at random, and around them as
much variance within as between; queries are new draws of the same. The peers, faiss's HNSW and
usearch, search the same vectors in the same run, each by the least effort of those tried that
reaches the recall. Ours is the whole way: a question to an answer with its columns and thumbnails
from disk, while the peers' vectors are in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.embedding import photographs, vit_b_32
from benchmarks.none_of_these import kept, share
from clipguide import load_clip
from clipguide.cli.index import BOTH
from clipguide.engine import Engine, find
from clipguide.retrieval import Index, Query, maintenance, unrelated, update
from clipguide.retrieval.store import Store
from clipguide.zero_shot.none import unlike_each

OUT = Path(__file__).with_suffix(".json")
WIDTH, TOP, RECALL = 512, 10, 0.95
CHUNK = 20_000
THUMBNAIL = 4000  # bytes
SHEET = Path(__file__).with_name("search-photographs.webp")
MORE = Path(__file__).with_name("photographs.json")
EFFORTS = (16, 32, 64, 128, 256, 512, 1024)
app = typer.Typer(add_completion=False, help=__doc__)


def save(key: str, facts: dict) -> None:
    """Put a section into search.json."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    about = {"torch": torch.__version__, "processors": os.cpu_count()}
    OUT.write_text(json.dumps({**known, key: {**about, **facts}}, indent=1) + "\n")


def clustered(count: int, clusters: int, random: np.random.Generator, centre_CD: np.ndarray):
    """Unit vectors_BD: a centre of length 1, and noise of length 1 in the mean."""
    unit_BD = centre_CD[random.integers(0, clusters, count)]
    for part_BD in np.split(unit_BD, range(CHUNK, count, CHUNK)):  # views
        part_BD += random.standard_normal(part_BD.shape, np.float32) * WIDTH**-0.5
        part_BD /= np.linalg.norm(part_BD, axis=1, keepdims=True)
    return unit_BD


def exact(unit_BD: np.ndarray, query_QD: np.ndarray) -> np.ndarray:
    """The places_QK of the nearest."""
    best = [np.empty((len(query_QD), 0)), np.empty((len(query_QD), 0), np.int64)]
    for start in range(0, len(unit_BD), CHUNK):
        score_QB = query_QD @ unit_BD[start : start + CHUNK].T
        place_QK = np.argpartition(-score_QB, TOP, axis=1)[:, :TOP]
        scores = np.concatenate([best[0], np.take_along_axis(score_QB, place_QK, 1)], 1)
        places = np.concatenate([best[1], place_QK + start], 1)
        order = np.argsort(-scores, axis=1)[:, :TOP]
        best = [np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)]
    return best[1]


def timed(ask: Callable[[np.ndarray], list[int]], query_QD: np.ndarray, truth_QK: np.ndarray):
    """Milliseconds of each query, and recall@10."""
    milliseconds, hits = [], 0
    for query_D, truth_K in zip(query_QD, truth_QK, strict=True):
        begin = time.perf_counter()
        found = ask(query_D)
        milliseconds.append(1000 * (time.perf_counter() - begin))
        hits += len(set(found) & set(truth_K.tolist()))
    return milliseconds, hits / truth_QK.size


def row(name: str, effort: object, milliseconds: list[float], recall: float) -> dict:
    p50, p99 = np.percentile(milliseconds, (50, 99)).tolist()
    facts = {"effort": effort, "p50 ms": round(p50, 2), "p99 ms": round(p99, 2)}
    facts["recall@10"] = round(recall, 4)
    typer.echo(f"{name:22} {facts}")
    return facts


def least(name: str, ask_at: Callable, query_QD: np.ndarray, truth_QK: np.ndarray) -> dict:
    """The first effort that reaches the recall, else the last."""
    for effort in EFFORTS:
        milliseconds, recall = timed(ask_at(effort), query_QD, truth_QK)
        if recall >= RECALL:
            break
    return row(name, effort, milliseconds, recall)


def fill(path: Path, unit_BD: np.ndarray, random: np.random.Generator) -> Index:
    """An index of vectors, each with a path and a thumbnail of random bytes."""
    import pyarrow as pa

    store = Store(path, make=True)
    store.create(WIDTH, key="0 float32 alpha white frames 1", model="made")
    schema = store.table.schema

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(unit_BD), CHUNK):
            part = unit_BD[start : start + CHUNK]
            small = random.bytes(THUMBNAIL * len(part))
            cuts = range(0, len(small), THUMBNAIL)
            known = {
                "path": [f"{i}" for i in range(start, start + len(part))],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), WIDTH),
                "thumbnail": [small[cut : cut + THUMBNAIL] for cut in cuts],
            }
            columns = [
                pa.array(known[f.name], f.type)
                if isinstance(known.get(f.name), list)
                else known.get(f.name, pa.nulls(len(part), f.type))
                for f in schema
            ]
            yield pa.record_batch(columns, schema=schema)

    store.table.add(pa.RecordBatchReader.from_batches(schema, batches()))
    store.table.optimize()
    return Index(path)


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@app.command()
def vectors(
    count: Annotated[int, typer.Option(min=1000)] = 1_000_000,
    clusters: Annotated[int, typer.Option(min=10)] = 10_000,
    queries: Annotated[int, typer.Option(min=10)] = 500,
    peers: bool = True,
    keep: bool = True,
    seed: int = 0,
    keep_index: Annotated[
        Path | None, typer.Option(help="Where indexes are kept, so that the next call only asks.")
    ] = None,
    build_only: Annotated[bool, typer.Option("--build-only", help="Ask nothing.")] = False,
) -> dict:
    """Time and recall of the ten nearest; faiss and usearch beside."""
    with contextlib.ExitStack() as stack:
        home = keep_index or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = home / f"{count}-{clusters}-{queries}-{seed}"
        facts = build(folder, count, clusters, queries, seed, peers)
        if build_only:
            return facts
        query_QD, truth_QK = np.load(folder / "query.npy"), np.load(folder / "truth.npy")

        def ask(query_D: np.ndarray) -> list[int]:
            answer = index.search(Query(torch.from_numpy(query_D)), k=TOP, compare=False)
            return [int(hit.path) for hit in answer.hits]

        forget(folder / "db")
        index = Index(folder / "db")
        cold, recall = timed(ask, query_QD[:100], truth_QK[:100])
        facts["clipguide, cold"] = row("clipguide, cold", maintenance.probes(count), cold, recall)
        times, recall = timed(ask, query_QD, truth_QK)
        facts["clipguide"] = row("clipguide", maintenance.probes(count), times, recall)
        for name, peer in PEERS.items() if peers else ():
            facts[name] = least(name, peer.opened(folder / peer.file), query_QD, truth_QK)
    if keep:
        save(f"vectors {count}", facts)
    return facts


def build(
    folder: Path, count: int, clusters: int, queries: int, seed: int, peers: bool
) -> dict[str, object]:
    """Everything that is asked, in a folder, less what is there already; facts about it."""
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / "facts.json"
    facts: dict = json.loads(noted.read_text()) if noted.exists() else {}
    facts.update(count=count, clusters=clusters)
    random = np.random.default_rng(seed)
    centre_CD = random.normal(0, WIDTH**-0.5, (clusters, WIDTH)).astype(np.float32)
    names = {"query.npy", "truth.npy", "db", *(p.file for p in PEERS.values() if peers)}
    if all((folder / name).exists() for name in names):
        return facts
    unit_BD = clustered(count, clusters, random, centre_CD)
    query_QD = clustered(queries, clusters, random, centre_CD)

    def stage(file: str, make: Callable[[Path], None]) -> None:
        """Make a file or folder unless it is there, whole or not at all."""
        if (folder / file).exists():
            return
        part = folder / f"part-{file}"
        shutil.rmtree(part, ignore_errors=True)
        begin = time.perf_counter()
        make(part)
        facts[f"{file} made in s"] = round(time.perf_counter() - begin, 1)
        noted.write_text(json.dumps(facts))
        part.rename(folder / file)
        typer.echo(f"{file}: {facts[f'{file} made in s']} s")

    if "total variance" not in facts:
        total = 1 - float(np.square(unit_BD.mean(0)).sum())
        facts["total variance"] = round(total, 4)
        facts["within, share"] = round(_within(total, random, centre_CD), 3)
    stage("query.npy", lambda part: np.save(part.open("wb"), query_QD))
    stage("db", lambda part: _fill_and_index(part, unit_BD, random))
    stage("truth.npy", lambda part: np.save(part.open("wb"), exact(unit_BD, query_QD)))
    for peer in PEERS.values() if peers else ():
        stage(peer.file, lambda part, peer=peer: peer.make(unit_BD, part))
    return facts


def _fill_and_index(path: Path, unit_BD: np.ndarray, random: np.random.Generator) -> None:
    index = fill(path, unit_BD, random)
    if len(unit_BD) >= maintenance.EXACT:
        maintenance.index_vectors(index.store.table)


def _within(total: float, random: np.random.Generator, centre_CD: np.ndarray) -> float:
    """The share of the variance that is within clusters, of a sample of 10 of them."""
    found = []
    for centre_D in centre_CD[:10]:
        part = clustered(500, 1, random, centre_D[None])
        found.append(1 - float(np.square(part.mean(0)).sum()))
    return statistics.mean(found) / total


class Faiss:
    """faiss's HNSW, kept in a file."""

    file = "faiss.index"

    @staticmethod
    def make(unit_BD: np.ndarray, path: Path) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.add(unit_BD)
        faiss.write_index(index, str(path))

    @staticmethod
    def opened(path: Path) -> Callable:
        import faiss

        index = faiss.read_index(str(path))

        def at(effort: int) -> Callable:
            index.hnsw.efSearch = effort
            return lambda query_D: index.search(query_D[None], TOP)[1][0].tolist()

        return at


class Usearch:
    """usearch, kept in a file."""

    file = "usearch.index"

    @staticmethod
    def make(unit_BD: np.ndarray, path: Path) -> None:
        import usearch.index

        index = usearch.index.Index(ndim=WIDTH, metric="ip", dtype="f32", connectivity=32,
                                    expansion_add=200)  # fmt: skip
        index.add(np.arange(len(unit_BD)), unit_BD)
        index.save(str(path))

    @staticmethod
    def opened(path: Path) -> Callable:
        import usearch.index

        index = usearch.index.Index.restore(str(path))

        def at(effort: int) -> Callable:
            index.expansion_search = effort
            return lambda query_D: index.search(query_D, TOP).keys.tolist()

        return at


PEERS = {"faiss HNSW": Faiss, "usearch": Usearch}


@app.command()
def overhead(
    clip: Annotated[str, typer.Option(help="vit-b-32 (random weights), or mini.")] = "vit-b-32",
    pictures: Annotated[int, typer.Option(min=8)] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    keep: bool = True,
) -> dict:
    """Seconds of indexing ÷ embedding alone, in turn; JPEGs of 512 pixels, no cache.

    The index has one picture already, so that the background's nouns, which are encoded once, are
    not counted.
    """
    model = vit_b_32() if clip == "vit-b-32" else load_clip(clip)
    engine = Engine(model)
    ratios, seconds = [], []
    with photographs(pictures + 1) as paths, tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        list(update(first, paths[:1], engine=engine))
        for number in range(rounds + 1):
            db = shutil.copytree(first, Path(folder) / f"{number}")
            begin = time.perf_counter()
            assert all(row.error is None for row in engine.embed(find([paths[0].parent])))
            alone = time.perf_counter() - begin
            begin = time.perf_counter()
            assert list(update(db, [paths[0].parent], engine=engine))[-1].new == pictures
            if number:
                seconds.append(alone)
                ratios.append((time.perf_counter() - begin) / alone)
    facts = {"pictures": pictures, "rounds": rounds, "ratio": round(statistics.median(ratios), 3),
             "ratios": [round(ratio, 3) for ratio in ratios],
             "embedding alone, s": round(statistics.median(seconds), 2)}  # fmt: skip
    typer.echo(json.dumps(facts))
    if keep:
        save(f"overhead {clip}", facts)
    return facts


@app.command()
def unchanged(files: int = 100_000, keep: bool = True) -> dict:
    """Seconds of a second run over files that have not changed."""
    from PIL import Image

    engine = Engine(load_clip("mini"))
    with tempfile.TemporaryDirectory() as folder:
        home, db = Path(folder) / "pictures", Path(folder) / "db"
        home.mkdir()
        Image.new("RGB", (16, 16)).save(home / "0.png")
        list(update(db, [home], engine=engine))
        content, then = (home / "0.png").read_bytes(), time.time() - 60
        for i in range(files):  # of one content, so that none is embedded
            path = home / f"{i // 1000:03}" / f"{i:06}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (then, then))
        begin = time.perf_counter()
        list(update(db, [home], engine=engine))
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        last = list(update(db, [home], engine=engine))[-1]
        second = time.perf_counter() - begin
    assert last.same >= files and not (last.new or last.changed or last.gone)
    facts = {"files": files, "first s": round(first, 2), "unchanged s": round(second, 2)}
    typer.echo(json.dumps(facts))
    if keep:
        save("unchanged", facts)
    return facts


def stub() -> None:
    """Register stub://bucket/COUNT with fsspec: a store of so many images, a thousand a folder,
    whose names are made as they are listed."""
    import fsspec

    class Stub(fsspec.AbstractFileSystem):
        protocol = "stub"

        def isdir(self, path: str) -> bool:
            return True

        def exists(self, path: str, **_: object) -> bool:
            return True

        def walk(self, path: str, maxdepth=None, topdown=True, on_error="omit", **_: object):
            count = int(path.rpartition("/")[2])
            for start in range(0, count, 1000):
                names = [f"{i:08}.png" for i in range(start, min(start + 1000, count))]
                yield f"{path}/{start:08}", {}, {name: {"size": 5, "mtime": 1.0} for name in names}

    fsspec.register_implementation("stub", Stub, clobber=True)


def compared(count: int, db: str | os.PathLike) -> int:
    """How many of so many names the driver has to have read, against an empty index: it lists them,
    compares them, and notes on disk what is to be done."""
    from clipguide.retrieval import beyond, remote
    from clipguide.retrieval.captions import Captions

    stub()
    with beyond.RayUpdate(Store(db, make=True), None, Captions(), []) as job:
        url = f"stub://bucket/{count}"
        job.listing = remote.Listing([url], recursive=True, walked=job.walked)
        job.compare(job.listing)
        return len(job.to_read)


MEASURED = """
import json, resource, sys, tempfile, time
from benchmarks.search import compared
with tempfile.TemporaryDirectory() as folder:
    compared(1000, folder)
    begin, count = time.perf_counter(), int(sys.argv[1])
    assert compared(count, folder) == count
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"names": count, "MiB": round(peak), "s": round(time.perf_counter() - begin, 1)}))
"""


@app.command()
def listing(
    largest: Annotated[int, typer.Option(help="Powers of ten from 10,000 to this.")] = 10**7,
    keep: bool = True,
) -> list[dict]:
    """The driver's peak of memory, with Python and its libraries, over the names that are listed:
    a process for each number."""
    rows, count = [], 10**4
    while count <= largest:
        command = [sys.executable, "-c", MEASURED, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        typer.echo(json.dumps(rows[-1]))
        count *= 10
    if keep:
        save("listing", {"rows": rows})
    return rows


@app.command("photographs")
def of_photographs(
    sheet: Annotated[Path, typer.Option(help="A picture of the first five answers.")] = SHEET,
    clip: str = BOTH,
    keep: bool = True,
) -> dict:
    """Ten searches in the fifty photographs that packages hold, by every fifth one's name: the
    first five answers of each, on a sheet, two queries a row."""
    from clipguide.images import contact_sheet
    from training import common
    from training.evaluate.photographs import NAMED, fetch, open_photo

    known = [p for file in (NAMED, MORE) for p in json.loads(file.read_text("utf-8"))["photos"]]
    queries = [photo["name"] for photo in known[::5]]
    embedder = load_clip(clip)
    with tempfile.TemporaryDirectory() as home:
        names, pictures = {}, {}
        for i, photo in enumerate(known):
            path = Path(home) / "photos" / f"{i:02}.png"
            path.parent.mkdir(exist_ok=True)
            picture = open_photo(fetch(photo, common.CACHE / "photos") / photo["file"])
            picture.thumbnail((512, 512))
            picture.save(path)
            names[str(path)] = {photo["name"], *photo["also"]}
            pictures[str(path)] = picture.resize((128, 128))
        for _ in update(Path(home) / "db", [path.parent], engine=Engine(embedder)):
            pass
        index = Index(Path(home) / "db")
        found = {
            text: [
                hit.path for hit in index.search(Query(embedder.encode_text([text])[0]), k=5).hits
            ]
            for text in queries
        }
    right = {text: [text in names[path] for path in paths] for text, paths in found.items()}
    labels = [f"{text}{' *' if text in names[p] else ''}" for text, ps in found.items() for p in ps]
    drawn = [pictures[path] for paths in found.values() for path in paths]
    contact_sheet(drawn, labels=labels, columns=10).save(sheet, quality=60)
    facts = {
        "photographs": len(known),
        "clip": clip,
        "first": sum(row[0] for row in right.values()),
        "among five": sum(any(row) for row in right.values()),
        "missed": [text for text, row in right.items() if not any(row)],
    }
    typer.echo(json.dumps(facts, indent=1))
    if keep:
        save("photographs", facts)
    return facts


@app.command("absent")
def of_absent_names(
    clip: str = BOTH,
    sets: Annotated[int, typer.Option(min=1)] = 5,
    queries: Annotated[int, typer.Option(min=1)] = 100,
    keep: bool = True,
) -> list[dict]:
    """How the best score is compared with unrelated texts, of names that are in a collection of
    held-out drawings, and of names that are absent; by half of all names at random, several times.
    """
    from training.evaluate.drawings import Drawings

    model, drawings = load_clip(clip), Drawings()
    text_ND = model.encode_text(drawings.concepts)
    word_WD = model.encode_text(unrelated.words())
    rows = []
    for what, found in drawings.tests().items():
        unit_BD = kept(model, what.replace(" ", "-"), lambda f=found: drawings.encode(model, f))
        target_B = drawings.targets(found)
        top1 = ((unit_BD @ text_ND.T).argmax(1) == target_B).double().mean().item()
        figures = [
            compared_with(unit_BD, target_B, text_ND, word_WD, drawings.concepts, seed, queries)
            for seed in range(sets)
        ]
        mean = {k: round(statistics.mean(f[k] for f in figures), 3) for k in figures[0]}
        rows.append({"drawings": what, "top-1": round(top1, 3), **mean})
        typer.echo(json.dumps(rows[-1], ensure_ascii=False))
    if keep:
        save(f"absent {clip}", {"sets": sets, "rows": rows})
    return rows


def compared_with(
    unit_BD: torch.Tensor,
    target_B: torch.Tensor,
    text_ND: torch.Tensor,
    word_WD: torch.Tensor,
    concepts: list[str],
    seed: int,
    queries: int,
) -> dict[str, float]:
    """What a collection of half of the pictures' names says of these and of the others, less those
    that mean what one of it means."""
    names = target_B.unique()
    names = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))]
    half, text_ND = len(names) // 2, text_ND[names]
    keep_B = torch.isin(target_B, names[:half])
    here_BD, here_B = unit_BD[keep_B], target_B[keep_B]
    label, kin = [concepts[n] for n in names.tolist()], unrelated.kin(word_WD)
    best_W = unrelated.best(here_BD.split(4096), word_WD)
    other_NN = unlike_each(text_ND, text_ND, label, label)
    absent = [n for n in range(half, len(names)) if other_NN[n, :half].all()][:queries]

    def ask(n: int) -> tuple[float, bool]:
        """What the best score is better than, and whether its picture is right."""
        score, place = (here_BD @ text_ND[n]).max(0)
        apart_W = unrelated.apart(label[n], text_ND[n], word_WD, kin)
        share = unrelated.share_below(float(score), best_W, apart_W)
        return share, bool(here_B[place] == names[n])

    asked = [ask(n) for n in range(min(half, queries))]
    there_N = torch.tensor([value for value, _ in asked], dtype=torch.float64)
    absent_N = torch.tensor([ask(n)[0] for n in absent], dtype=torch.float64)
    return {
        "pictures": len(here_BD),
        "absent names": len(absent_N),
        "better than, of those there": there_N.median().item(),
        "better than, of absent ones": absent_N.median().item(),
        "refused at 5 % false": share(absent_N, there_N.quantile(0.05).item()),
        "AUC": (there_N[:, None] > absent_N).double().mean().item(),
        "recall@1 of those there": statistics.mean(right for _, right in asked),
    }


if __name__ == "__main__":
    app()
