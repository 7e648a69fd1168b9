"""Render every drawing and write the folder that training reads.

pictures.npy    uint8 (N, 256, 256, 4), RGBA not premultiplied; 0 where transparent
manifest.jsonl  one line for each image, in the same order
crops.npy       uint8 (2400, 128, 128, 3), crops of 10 photographs (`photographs.py`)
table.md        sets, packages, versions, licences, counts, and the drawings left out by reason
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from training.data.captions import banned_words
from training.data.collect import Collector, Drawing
from training.data.near import NEAR, nearest, thumbnails
from training.data.photographs import PHOTOGRAPHS, crops
from training.data.render import SIZE, LeftOut, render
from training.data.sources import SETS, fetch, version

SYNONYMS = Path(__file__).parents[1] / "synonyms.json"


def build(out: Path, root: Path, workers: int = 2) -> None:
    """Write the data folder `out` from the sources under `root`. Fetch the missing sources."""
    sources = fetch(root)
    collector = Collector(sources)
    drawings = collector.all()
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "crops.npy", crops(sources.photographs))
    raw, lines, seen = out / "pictures.raw", [], set()
    with raw.open("wb") as file, multiprocessing.Pool(workers) as pool:
        tasks = [(d.source, d.is_path, d.grey_rule) for d in drawings]
        for drawing, result in zip(drawings, pool.imap(render_one, tasks, 16), strict=True):
            if isinstance(result, str):
                collector.dropped[result.split(":")[0]] += 1
                continue
            pixels, grey = result
            digest = hashlib.sha256(pixels).digest()
            if digest in seen:
                collector.dropped["exact duplicate picture"] += 1
                continue
            seen.add(digest)
            file.write(pixels)
            lines.append(manifest_line(len(lines), drawing, grey))
    write_npy(raw, out / "pictures.npy", len(lines))
    mark_near(out / "pictures.npy", lines)
    with (out / "manifest.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "table.md").write_text(table(lines, collector.dropped), encoding="utf-8")


def render_one(task: tuple) -> tuple[np.ndarray, bool] | str:
    """Return (image, whether it is grey), or the reason why the drawing is left out."""
    try:
        return render(*task)
    except LeftOut as reason:
        return str(reason)


def manifest_line(index: int, drawing: Drawing, grey: bool) -> dict:
    concept, chosen = drawing.concept, drawing.set
    names, keywords = ([w for w in words if not synonyms().search(w)]
                       for words in (concept.names, concept.keywords))
    return {
        "index": index, "set": chosen.name, "style": chosen.style, "family": chosen.family,
        "concept": concept.concept, "names": names, "keywords": keywords,
        "category": concept.category, "symbol": concept.symbol, "mono": grey,
        "split": chosen.split, "licence": chosen.licence, "author": chosen.author,
        "source": drawing.file, "emoji": concept.emoji,
    }


@cache
def synonyms() -> re.Pattern:
    """Return the pattern of the words that no name or keyword may contain: see synonyms.json."""
    return banned_words(json.loads(SYNONYMS.read_text(encoding="utf-8")))


def write_npy(raw: Path, target: Path, count: int) -> None:
    """Write the raw bytes with an .npy header, so that numpy can map the file. Delete `raw`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE, 4)}
    with target.open("wb") as file, raw.open("rb") as source:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(source, file, 1 << 24)
    raw.unlink()


def mark_near(path: Path, lines: list[dict]) -> None:
    """Set `nearest_train` (RMSE) and `near_train` (RMSE below NEAR) on each test-style line."""
    small = thumbnails(np.load(path, mmap_mode="r"))
    test = np.array([line["split"] != "train" for line in lines])
    if not test.any() or test.all():
        return
    distances = nearest(small[test], small[~test])
    for index, distance in zip(np.flatnonzero(test), distances, strict=True):
        lines[index]["nearest_train"] = round(float(distance), 4)
        lines[index]["near_train"] = bool(distance < NEAR)


def table(lines: list[dict], dropped: Counter) -> str:
    """Return Markdown tables of the sets, the concepts, the reasons and the photographs."""
    rows = ["# The pictures", "", "| set | style | family | package | licence | author | pictures "
            "| no symbol | concepts | split |", "|---|---|---|---|---|---|---|---|---|---|"]
    for chosen in SETS.values():
        own = [line for line in lines if line["set"] == chosen.name]
        plain = sum(not line["symbol"] for line in own)
        rows.append(
            f"| {chosen.name} | {chosen.style} | {chosen.family} | {chosen.package} "
            f"({version(chosen.package)}) | {chosen.licence} | {chosen.author} | {len(own)} "
            f"| {plain} | {len({line['concept'] for line in own})} | {chosen.split} |"
        )
    rows += ["", "| which | pictures | concepts | in >= 2 families | in >= 3 | in >= 5 |",
             "|---|---|---|---|---|---|"]
    for title, keep in (
        ("train", lambda x: x["split"] == "train"),
        ("train, without symbols", lambda x: x["split"] == "train" and not x["symbol"]),
        ("test styles", lambda x: x["split"] != "train"),
        ("test styles, without symbols", lambda x: x["split"] != "train" and not x["symbol"]),
    ):
        own = [line for line in lines if keep(line)]
        families = Counter(concept for concept, _ in {(x["concept"], x["family"]) for x in own})
        counts = [sum(n >= least for n in families.values()) for least in (2, 3, 5)]
        rows.append(f"| {title} | {len(own)} | {len(families)} | "
                    + " | ".join(map(str, counts)) + " |")
    rows += ["", "| left out, because | drawings |", "|---|---|"]
    rows += [f"| {why} | {count} |" for why, count in dropped.most_common()]
    rows += ["", "| photograph, for its crops | licence | author |", "|---|---|---|"]
    rows += [f"| {name} | {licence} | {who} |" for name, (licence, who) in PHOTOGRAPHS.items()]
    near = sum(bool(line.get("near_train")) for line in lines)
    rows += ["", f"{near} pictures of the test styles are nearly a training picture "
             f"(32x32 RMSE < {NEAR}) and are marked `near_train`."]
    return "\n".join(rows) + "\n"
