"""Measure the cost of indexing and listing, and how absent objects score.

    python -m benchmarks.search overhead --clip mini       # indexing ÷ embedding alone
    python -m benchmarks.search warm                       # `clipguide search`, and its imports
    python -m benchmarks.search unchanged                  # 100,000 files that have not changed
    python -m benchmarks.search listing                    # the driver's memory, 10^4 to 10^7 names
    python -m benchmarks.search absent                     # needs python -m training.data build
    python -m benchmarks.search photographs                # 50 that packages hold, ten queries

Each adds its figures to benchmarks/search.json. benchmarks/vectors.py compares search itself with
faiss and usearch.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.common import save
from benchmarks.embedding import photographs, vit_b_32
from benchmarks.none_of_these import kept, share
from clipguide import load_clip, unrelated
from clipguide.cli.index import BOTH
from clipguide.engine import Engine, find
from clipguide.retrieval import Index, Query, update
from clipguide.retrieval.store import Store
from clipguide.zero_shot.none import unlike_each

SHEET = Path(__file__).with_name("search-photographs.webp")
MORE = Path(__file__).with_name("photographs.json")
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def overhead(
    clip: Annotated[str, typer.Option(help="vit-b-32 (random weights), or mini.")] = "vit-b-32",
    pictures: Annotated[int, typer.Option(min=8)] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    keep: bool = True,
) -> dict:
    """Measure the seconds of indexing divided by those of embedding alone, in turn, for JPEGs of
    512 pixels without a cache: the ratio of each round, by the clock and by the processor, because
    other programs may run, and the medians.

    The index already has one image, so that the unrelated texts, which are encoded once, do not
    count.
    """
    model = vit_b_32() if clip == "vit-b-32" else load_clip(clip)
    engine = Engine(model)
    clock, processor, seconds = [], [], []
    with photographs(pictures + 1) as paths, tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        list(update(first, paths[:1], engine=engine))
        for number in range(rounds + 1):
            db = shutil.copytree(first, Path(folder) / f"{number}")
            begin = time.perf_counter(), time.process_time()
            assert all(row.error is None for row in engine.embed(find([paths[0].parent])))
            middle = time.perf_counter(), time.process_time()
            assert list(update(db, [paths[0].parent], engine=engine))[-1].new == pictures
            end = time.perf_counter(), time.process_time()
            if number:
                seconds.append(middle[0] - begin[0])
                clock.append((end[0] - middle[0]) / seconds[-1])
                processor.append((end[1] - middle[1]) / (middle[1] - begin[1]))
    facts = {"pictures": pictures, "rounds": rounds,
             "ratio": round(statistics.median(clock), 3),
             "ratio, rounds": [round(one, 3) for one in sorted(clock)],
             "ratio, processor": round(statistics.median(processor), 3),
             "ratio, processor, rounds": [round(one, 3) for one in sorted(processor)],
             "embedding alone, s": round(min(seconds), 2)}  # fmt: skip
    typer.echo(json.dumps(facts))
    if keep:
        save(f"overhead {clip}", facts)
    return facts


@app.command()
def warm(rounds: int = 3, keep: bool = True) -> dict:
    """Measure the seconds of `clipguide search` with mini, from start to end, with the files in
    memory, by the clock and by the processor: the least of some rounds; and the share of the
    imports, by package, as -X importtime counts."""
    with photographs(1) as paths, tempfile.TemporaryDirectory() as folder:
        list(update(Path(folder) / "db", paths, engine=Engine(load_clip("mini"))))
        line = ["-m", "clipguide", "search", "fox", "--db", f"{folder}/db"]
        seconds, processor = [], []
        for _ in range(rounds + 1):
            begin, begun = time.perf_counter(), of_children()
            subprocess.run([sys.executable, *line], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
            processor.append(of_children() - begun)
        command = [sys.executable, "-X", "importtime", *line]
        begin = time.perf_counter()
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        whole = 1e6 * (time.perf_counter() - begin)
    micro: Counter[str] = Counter()
    for line in told.splitlines():
        if line.startswith("import time:") and "imported package" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            micro[name.strip().partition(".")[0]] += int(own)
    facts = {
        "s": round(min(seconds[1:]), 2),
        "processor s": round(min(processor[1:]), 2),
        "imports, %": round(100 * sum(micro.values()) / whole),
        "of these": {name: round(100 * own / whole) for name, own in micro.most_common(6)},
    }
    typer.echo(json.dumps(facts))
    if keep:
        save("search from a warm disk", facts)
    return facts


def of_children() -> float:
    """Return the processor seconds of the programs that were started here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@app.command()
def unchanged(files: int = 100_000, keep: bool = True) -> dict:
    """Measure the seconds of a second run over files that have not changed."""
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
    """Return how many of this number of names the driver would have read, for an empty index. It
    lists them, compares them, and writes the tasks to disk."""
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
    """Measure the driver's peak memory, with Python and its libraries, for each number of names, in
    a separate process."""
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
    """Search ten times in the fifty photographs that Python packages contain, for every fifth name.
    Write the first five results of each to a sheet, two queries per row."""
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
    """Measure how the best score compares with unrelated texts: for names that are in a collection
    of held-out drawings, and for names that are not. Half of all names is drawn at random, several
    times."""
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
    """Return what a collection of half of the names says about these names and the others, without
    names that mean the same as one of its own."""
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
        """Return the share of unrelated texts below the best score, and whether its image is right.
        """
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
