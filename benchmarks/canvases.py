"""Measure the images of each canvas with the referee, which does not steer or select.

    taskset -c 0 python -m benchmarks.canvases minute  # each canvas, 60 s an image: top-5, a sheet
    taskset -c 0 python -m benchmarks.canvases choose  # canvas, views and rate in equal time
    taskset -c 0 python -m benchmarks.canvases race    # time to the classic loop's final score
    taskset -c 0 python -m benchmarks.canvases longer  # the image kept of 2,000 steps, 3 x the rate
    python -m benchmarks.canvases tile                 # change across a tile's seam ÷ inside
    python -m benchmarks.canvases memory               # peaks: 512 cutouts ÷ 32, 1024² pixels

The referee is `python -m training.clip export referee`. Each command with a referee takes
--minutes. It stores its measurements in the cache, with the digest of the models that the canvas
needs, and continues from them. At its end, each command writes canvases.json. Time is processor
time, so the commands can run next to other jobs. `choose` uses 50 prompts after the first 200,
which no target uses. The others use the first prompts. `python -m benchmarks.loops speed` measures
the iterations at the size of taming-transformers.

Shapes: B images, K concepts, D of an embedding.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from clipguide.pipelines.canvas_kinds import CANVASES
from clipguide.pipelines.drawing import Drawing
from clipguide.pipelines.text_to_canvas import TextToCanvas
from PIL import Image

from benchmarks.canvas_runs import Measure, raced, timed
from benchmarks.records import Records, digest_of
from clipguide import images
from training.common import CACHE as TRAINING

HERE = Path(__file__).parent
REFEREE = TRAINING / "clip" / "referee"
CACHE = TRAINING / "canvases"
OUT = HERE / "canvases.json"
SHEET = HERE.parent / "samples" / "canvases.png"
SIDE = 96  # pixels of an image on the sheet
UNUSED = 200  # no target and no steering benchmark uses the prompts from here on
VIEWS = ("warped", "plain", "vqgan-clip", "disco")
RATES = (0.5, 1.0, 2.0)  # × the canvas's default rate
Referee = Annotated[Path, typer.Option("--referee", help="The referee's open_clip folder.")]
Minutes = Annotated[float, typer.Option(help="Begin nothing after that.")]
app = typer.Typer(add_completion=False, help=__doc__)


def keep(name: str, facts: dict, models: dict[str, str] | None = None) -> None:
    """Add a measurement to canvases.json and print it.

    `models` are the digests of the models that the measurement depends on.
    """
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    known[name] = {**facts, **({"models": models} if models else {})}
    OUT.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    typer.echo(f"{name}: {json.dumps(facts, ensure_ascii=False)}")


def left(
    records: dict[str, Records], task: str, keys: Iterable[dict], minutes: float
) -> Iterator[dict]:
    """Yield the keys of a task without a record, until the time is over. `records` has those of
    each canvas."""
    end = time.monotonic() + 60 * minutes
    for key in keys:
        if records[key["canvas"]].has(task, **key):
            continue
        if time.monotonic() > end:
            return
        yield key


def opened(folder: Path, canvases: Iterable[str], *also: str) -> tuple[Measure, dict[str, Records]]:
    """Return the referee, and for each canvas the records of the present models. A measurement on
    one canvas may `also` need the models of others.

    From here on, torch uses one thread.
    """
    torch.set_num_threads(1)
    measure, path = Measure(folder), CACHE / "records.jsonl"
    marks = {name: digest_of(measure.models_for(name, *also)) for name in canvases}
    return measure, {name: Records(path, mark) for name, mark in marks.items()}


@app.command("minute")
def command_minute(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, help="Of the processor, an image.")] = 60.0,
    canvases: Annotated[str, typer.Option(help="By commas.")] = ",".join(CANVASES),
    sheet: Annotated[Path, typer.Option(help="A contact sheet.")] = SHEET,
    minutes: Minutes = 1e9,
) -> None:
    """Draw each prompt on each canvas, with the default settings and seed 0.

    No image is selected by hand.
    """
    names, owners = canvases.split(","), {}
    measure, records = opened(referee, names)
    wanted = [
        {"prompt": prompt, "canvas": name, "seconds": seconds}
        for prompt in measure.prompts[:prompts]
        for name in names
    ]
    for key in left(records, "minute", wanted, minutes):
        name, prompt = key["canvas"], key["prompt"]
        owner = owners.setdefault(name, TextToCanvas(name))
        picture, steps, took = timed(owner, prompt, Drawing(), seconds)
        path = drawn_at(records[name], seconds, name, prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        score = measure.score(prompt, images.to_tensor([picture]))
        facts = {"steps": steps, "took": round(took, 1), "score": round(score, 4)}
        records[name].add("minute", **key, **facts, top5=measure.top5(prompt, picture))
        typer.echo(f"{prompt}, {name}: {json.dumps(records[name].rows[-1])}")
    for name in names:
        same = {"canvas": name, "seconds": seconds}
        mine = [r for r in records[name].of("minute") if all(r[k] == v for k, v in same.items())]
        if mine:
            facts = {key: statistics.fmean(r[key] for r in mine) for key in ("top5", "score")}
            took = {"prompts": len(mine), "seconds": seconds}
            took["steps"] = statistics.median(r["steps"] for r in mine)
            keep(f"minute {name}", {**facts, **took}, measure.models_for(name))
    whole = [
        prompt
        for prompt in measure.prompts[:prompts]
        if all(drawn_at(records[name], seconds, name, prompt).exists() for name in names)
    ]
    if whole:
        write_sheet(records, seconds, names, whole, sheet)


def drawn_at(records: Records, seconds: float, name: str, prompt: str) -> Path:
    """Return the path of an image of `minute`."""
    return CACHE / records.mark / f"{seconds:g}" / name / f"{prompt}.png"


def write_sheet(
    records: dict[str, Records], seconds: float, names: list[str], prompts: list[str], sheet: Path
) -> None:
    """Write a sheet with the canvases side by side, two prompts per row."""
    cells, labels = [], []
    for prompt in prompts:
        for c, name in enumerate(names):
            picture = images.load(drawn_at(records[name], seconds, name, prompt))
            cells.append(picture.resize((SIDE, SIDE), Image.LANCZOS))
            labels.append(f"{prompt}, {name}" if c == 0 else name)
    images.contact_sheet(cells, labels=labels, columns=2 * len(names)).save(sheet)


@app.command("choose")
def command_choose(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, max=50, help="How many.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, help="Of the processor, an image.")] = 30.0,
    canvases: Annotated[str, typer.Option(help="By commas.")] = ",".join(CANVASES),
    views: Annotated[str, typer.Option(help="By commas.")] = ",".join(VIEWS),
    minutes: Minutes = 1e9,
) -> None:
    """Compare the referee's scores of canvases, views and rates in equal time.

    The settings are each canvas with each kind of views at its default rate, and each canvas with
    the default views at half and at twice that rate. A setting with slower steps has fewer steps.
    """
    names, owners = canvases.split(","), {}
    measure, records = opened(referee, names)
    ways = [(name, kind, 1.0) for name in names for kind in views.split(",")]
    ways += [(name, "warped", rate) for name in names for rate in RATES if rate != 1.0]
    wanted = [
        {"prompt": prompt, "canvas": name, "views": kind, "rate": rate, "seconds": seconds}
        for prompt in measure.prompts[UNUSED : UNUSED + prompts]
        for name, kind, rate in ways
    ]
    for key in left(records, "choose", wanted, minutes):
        owner = owners.setdefault(key["canvas"], TextToCanvas(key["canvas"]))
        lr = key["rate"] * CANVASES[key["canvas"]].lr
        drawing = Drawing(views=key["views"], lr=lr)
        picture, steps, took = timed(owner, key["prompt"], drawing, seconds)
        score = measure.score(key["prompt"], images.to_tensor([picture]))
        facts = {"steps": steps, "took": round(took, 1), "score": round(score, 4)}
        mine = records[key["canvas"]]
        mine.add("choose", **key, **facts, top5=measure.top5(key["prompt"], picture))
        typer.echo(json.dumps(mine.rows[-1], ensure_ascii=False))
    found = {}
    for way in ways:
        mine = [
            row
            for row in records[way[0]].of("choose")
            if (row["canvas"], row["views"], row["rate"], row["seconds"]) == (*way, seconds)
        ]
        if mine:
            facts = {key: statistics.fmean(r[key] for r in mine) for key in ("top5", "score")}
            found[" ".join(map(str, way))] = {**facts, "prompts": len(mine)}
    best = sorted(found, key=lambda name: -found[name]["score"])
    keep("choose", {"ways": {name: found[name] for name in best}}, measure.models_for(*names))


@app.command("race")
def command_race(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Of the classic loop.")] = 100,
    cutouts: Annotated[int, typer.Option(min=1, help="A step, of both.")] = 32,
    canvas: Annotated[str, typer.Option(help="Ours.")] = "pixels",
    minutes: Minutes = 1e9,
) -> None:
    """Measure the time to the classic loop's final score, divided by that loop's time.

    The score is the referee's score of the classic loop's last image. Both loops use mini, with the
    same cutouts, dtype and threads. The learning rate of our loop falls over the same number of
    steps. If our image never reaches the score, its whole time counts.
    """
    measure, records = opened(referee, [canvas], "vqgan")
    classic, owner = TextToCanvas("vqgan", judge=""), TextToCanvas(canvas, judge="")
    same = {"canvas": canvas, "steps": steps, "cutouts": cutouts}
    wanted = [{"prompt": prompt, **same} for prompt in measure.prompts[:prompts]]
    for key in left(records, "race", wanted, minutes):
        ratio, reached = raced(measure, classic, owner, key["prompt"], steps, cutouts)
        records[canvas].add("race", **key, ratio=round(ratio, 4), reached=reached)
        typer.echo(f"{key['prompt']}: {'reached' if reached else 'not reached'} in {ratio:.2f}")
    mine = [r for r in records[canvas].of("race") if all(r[k] == v for k, v in same.items())]
    ratios = [row["ratio"] for row in mine]
    facts = {"median": statistics.median(ratios), "mean": statistics.fmean(ratios)}
    facts["reached"] = statistics.fmean(row["reached"] for row in mine)
    models = measure.models_for("vqgan", canvas)
    keep(f"race {canvas}", {**facts, "prompts": len(ratios), **same}, models)


@app.command("longer")
def command_longer(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    steps: Annotated[int, typer.Option(min=200, help="In all.")] = 2000,
    canvas: Annotated[str, typer.Option(help="On which.")] = "pixels",
    minutes: Minutes = 1e9,
) -> None:
    """Compare the kept image of a long run at three times the rate with that of step 200. The pull
    of CLIP does not fade, so that both have all of it.

    The judge keeps the image. The figure is the share of prompts for which the referee scores it at
    least as high as the image of step 200.
    """
    measure, records = opened(referee, [canvas])
    owner, same = TextToCanvas(canvas), {"canvas": canvas, "steps": steps}
    drawing = Drawing(steps=steps, lr=3 * CANVASES[canvas].lr, patience=30, fade=0.0)
    wanted = [{"prompt": prompt, **same} for prompt in measure.prompts[:prompts]]
    for key in left(records, "longer", wanted, minutes):
        prompt = key["prompt"]
        run, early = owner.start(prompt, drawing), 0.0
        for step in run:
            if step.index == 199:
                early = measure.score(prompt, step.image())
        late = measure.score(prompt, run.loop.best())
        records[canvas].add("longer", **key, early=round(early, 4), late=round(late, 4))
        typer.echo(f"{prompt}: {early:.3f} at step 200, {late:.3f} kept of {run.index}")
    mine = [r for r in records[canvas].of("longer") if all(r[k] == v for k, v in same.items())]
    share = statistics.fmean(row["late"] >= row["early"] for row in mine)
    facts = {"at least as good": share, "prompts": len(mine), **same}
    keep(f"longer {canvas}", facts, measure.models_for(canvas))


@app.command("tile")
def command_tile(
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 6,
    steps: Annotated[int, typer.Option(min=1, help="Of each.")] = 30,
) -> None:
    """Measure the mean pixel difference across the seams, divided by that inside the image.

    The differences inside are those at the edges of the codes. The command measures the tiles of a
    VQGAN, and images that are not tiles.
    """
    owner, facts = TextToCanvas("vqgan", judge=""), {}
    for tile in (True, False):
        drawing, seams, inside = Drawing(steps=steps, tile=tile), [], []
        for seed in range(prompts):
            (picture,) = owner("a red fox", drawing, seed=seed)
            image_13HW = images.to_tensor([picture.image])
            for axis in (-1, -2):
                change = (image_13HW - image_13HW.roll(1, axis)).abs().mean((0, 1, -3 - axis))
                each = change[:: image_13HW.shape[axis] // 16]
                seams.append(each[0].item())
                inside.append(each[1:].mean().item())
        facts["tile" if tile else "none"] = statistics.fmean(seams) / statistics.fmean(inside)
    keep("tile", {**facts, "pictures": prompts})


@app.command("memory")
def command_memory() -> None:
    """Measure the peak memory of separate processes in GB.

    One of the processes only loads the models.
    """
    runs = {
        "loaded": None,
        "32 cutouts": Drawing(steps=2, cutouts=32),
        "512 cutouts": Drawing(steps=2, cutouts=512),
        "1024 pixels": Drawing(steps=2, size=(1024, 1024)),
    }
    facts = {name: round(_peak(drawing), 3) for name, drawing in runs.items()}
    ratio = facts["512 cutouts"] / facts["32 cutouts"]
    keep("memory", {**facts, "512 ÷ 32": round(ratio, 3)})


def _peak(drawing: Drawing | None) -> float:
    """Return the peak memory of a new process in GB."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, drawing).result()


def _measured(drawing: Drawing | None) -> float:
    owner = TextToCanvas("vqgan")
    if drawing:
        owner("a red fox", drawing)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    app()
