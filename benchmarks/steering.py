"""Measure the gain and the cost of each way of steering the mini generator, by a separate CLIP.

    taskset -c 0 python -m benchmarks.steering draw --minutes 600   # continues after a stop
    python -m benchmarks.steering table            # prints the tables, writes steering.json

The benchmark draws each prompt in all ways (`benchmarks/ways.py`) from the same seeds, in float32.
It draws one image at a time and one way after another, in one process with one thread.

Cost is the mean seconds of an image ÷ those of plain sampling of the same prompt. The figure is the
median over prompts. The seconds are processor time. On a core with no other job, they equal
wall-clock time. Other jobs do not change them.

"best of" keeps the image with the highest score of that many, by guide and judge together.
"default" is `clipguide generate`. The referee measures score, top-5, gain and diversity. It does
not guide, stop or select anything (`python -m training.clip export referee`).

The benchmark writes each way of a prompt when it is done, with the digest of all models. Images of
other models do not count, and the benchmark draws them again.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import torch
import typer
from clipguide.pipelines.generation import STEPS
from clipguide.pipelines.text_to_image import TextToImage

from benchmarks import ways
from benchmarks.gains import (
    Drawn,
    Row,
    at_budgets,
    caught,
    enough,
    frontier,
    markdown,
    of_auto,
    of_classes,
    of_fewer,
    rows,
    versus,
)
from benchmarks.records import digest_of, models_of
from benchmarks.ways import DEFAULT, PLAIN, Way, draw
from clipguide import Similarity, load_clip
from clipguide.guidance.auto import TABLE
from training.common import CACHE

HERE = Path(__file__).parent
RECORDS = CACHE / "steering.jsonl"
REFEREE = CACHE / "clip" / "referee"
SHIPPED = ("generator", "guide", "judge")
app = typer.Typer(add_completion=False, help=__doc__)
Records = Annotated[Path, typer.Option(help="Where the images' scores are, one a line.")]
Referee = Annotated[Path, typer.Option(help="The referee's open_clip folder.")]


def read(records: Path) -> list[Drawn]:
    """Return the images drawn so far, by any models. If two processes drew the same image at the
    same time, it counts once."""
    if not records.exists():
        return []
    found = [Drawn(**json.loads(line)) for line in records.read_text().splitlines()]
    return list({(d.models, d.prompt, d.way, d.seed): d for d in found}.values())


def ordered(number: int) -> list[int]:
    """Return the numbers of the prompts in the order in which they are drawn."""
    return random.Random(0).sample(range(number), number)


def classes() -> dict[int, str]:
    """Return the category of the object of each prompt, such as "animals & nature"."""
    from training.evaluate.clips import all_drawings
    from training.evaluate.samples import concept_prompts, things_drawn

    drawings = all_drawings()
    of_concept = {row["concept"]: row["category"] for row in drawings.rows}
    _, of = concept_prompts(things_drawn(drawings.concepts))
    return {k: of_concept[concept] for k, concept in enumerate(of)}


@app.command("draw")
def command_draw(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(help="How many of the 200 prompts, in an order.")] = 200,
    only: Annotated[str, typer.Option("--ways", help="Names or patterns, by semicolons.")] = "*",
    seeds: Annotated[int, typer.Option(help="At most so many images of a way.")] = 16,
    minutes: Annotated[float, typer.Option(help="Begin no prompt after that.")] = 1e9,
    records: Records = RECORDS,
) -> None:
    """Draw and score prompts that are not in the records yet."""
    from training.evaluate.clips import all_drawings
    from training.evaluate.samples import concept_prompts, things_drawn

    torch.set_num_threads(1)
    end, mark = time.monotonic() + 60 * minutes, digest_of(models_of(*SHIPPED, referee=referee))
    drawings, judge, model = all_drawings(), load_clip(str(referee)), TextToImage()
    every, of = concept_prompts(things_drawn(drawings.concepts))
    order = ordered(len(every))[:prompts]
    done = {(d.prompt, d.way) for d in read(records) if d.models == mark}
    text_KD = judge.encode_text(drawings.concepts)
    wanted = [
        way
        for way in ways.WAYS
        if way is PLAIN or any(fnmatchcase(way.name, pattern) for pattern in only.split(";"))
    ]
    draw(model, DEFAULT, every[0], 0)  # warm-up
    records.parent.mkdir(parents=True, exist_ok=True)
    for i in order:
        missing = [way for way in wanted if (i, way.name) not in done]
        if not missing:
            continue
        if time.monotonic() > end:
            break
        target = drawings.place[of[i]]
        for way in missing:  # write all of a way's seeds or none
            few = min(seeds, way.seeds)
            found = graded(model, judge, text_KD, way, every[i], target, few)
            with records.open("a") as file:
                file.writelines(
                    json.dumps({**asdict(one), "prompt": i, "models": mark}) + "\n" for one in found
                )
        typer.echo(f"{every[i]}: {len(missing)} ways")


def graded(
    model: TextToImage,
    referee: object,
    text_KD: torch.Tensor,
    way: Way,
    prompt: str,
    target: int,
    seeds: int,
) -> list[Drawn]:
    """Return the scored images of one way. The number of their prompt is not set."""
    from training.evaluate.drawings import ranks

    text_1D, vectors, found = referee.encode_text([prompt]), [], []
    judge, told_1D = model.judge, model.judge.encode_text([prompt])
    guide = Similarity(model.clip, prompt, views=None)
    for seed in range(seeds):
        start = time.process_time()
        image_13HW = draw(model, way, prompt, seed)
        seconds = time.process_time() - start
        vector_1D = referee.encode_image(image_13HW)
        vectors.append(vector_1D)
        found.append(
            Drawn(
                prompt=-1,
                way=way.name,
                seed=seed,
                seconds=round(seconds, 4),
                score=round((vector_1D @ text_1D.T).item(), 5),
                top5=bool(ranks(vector_1D, text_KD, torch.tensor([target])).item() < 5),
                guide=round(guide.score(image_13HW).item(), 5),
                judge=round((judge.encode_image(image_13HW) @ told_1D.T).item(), 5),
            )
        )
    unit_BD = torch.cat(vectors)
    if seeds > 1:
        others_B = ((unit_BD @ unit_BD.T).sum(1) - 1) / (seeds - 1)
        for one, cosine in zip(found, others_B.tolist(), strict=True):
            one.spread = round(1 - cosine, 5)
    return found


@app.command("table")
def command_table(
    records: Records = RECORDS,
    referee: Referee = REFEREE,
    out: Annotated[Path, typer.Option(help="A JSON file, and a plot beside it.")] = HERE
    / "steering.json",
    auto: Annotated[bool, typer.Option(help="Write what the method auto chooses from.")] = False,
) -> None:
    """Print the tables of the present models as Markdown, and write a JSON file and a plot."""
    models = models_of(*SHIPPED, referee=referee)
    every = [d for d in read(records) if d.models == digest_of(models)]
    drawn, fewer = enough(every), of_fewer(every)
    if not drawn:
        raise typer.BadParameter(f"{records} has nothing by the models as they are: draw first.")
    found, prompts = rows(drawn), len({d.prompt for d in drawn})
    typer.echo(f"{prompts} prompts.\n\n{markdown(found)}")
    budgets = at_budgets(drawn) if prompts > 1 else {}
    for budget, best in budgets.items():
        typer.echo(f"\nAt {budget:g} × plain, the best first:\n\n{markdown(best)}")
    facts = {"models": models, "prompts": prompts, "rows": [asdict(row) for row in found]}
    facts["budgets"] = {f"{b:g}": [asdict(row) for row in best] for b, best in budgets.items()}
    of_prompt = classes()
    chosen = (default_of(found), best_at_four(found))
    facts["classes"] = {row.name: of_classes(drawn, row, of_prompt) for row in chosen}
    some, pairs = rows(fewer) if fewer else [], versus(every)
    facts["fewer"] = [asdict(row) for row in some]
    facts["versus"] = [asdict(pair) for pair in pairs]
    typer.echo(f"\nOf fewer prompts:\n\n{markdown(some)}\n\nOther programs: {facts['versus']}")
    facts["auto"] = {f"{b:g}": list(found) for b, found in of_auto(drawn).items()}
    steered = [d for d in drawn if d.way == PLAIN.name or d.way.startswith("shortcut")]
    facts["judge"] = asdict(seen) if (seen := caught(steered)) else None
    typer.echo(f"\nauto: {facts['auto']}\n\njudge: {facts['judge']}")
    out.write_text(json.dumps(facts, indent=1) + "\n")
    plot(found, out.with_suffix(".png"))
    if auto:
        write_auto(found, models, prompts)


def default_of(found: list[Row]) -> Row:
    """Return the row of `clipguide generate`, or of plain sampling if that was not drawn."""
    return next((row for row in found if row.way == DEFAULT.name), found[0])


def best_at_four(found: list[Row]) -> Row:
    """Return the row with the highest gain of those that cost at most four plain samples."""
    return max((row for row in found if row.fits(4)), key=lambda row: row.gain)


def write_auto(found: list[Row], models: dict[str, str], prompts: int) -> None:
    """Write the table that the method auto chooses from: what it can choose anywhere, and what it
    can choose for the embedded generator."""
    names = ("method", "options", "best_of", "steps", "decoder", "cutouts", "cost", "gain")
    kept = [*frontier(found, own=False), *frontier(found, own=True)]
    table = [{name: asdict(row)[name] for name in names} for row in found if row in kept]
    table.sort(key=lambda row: row["cost"])
    for row in table:
        row.update(cost=round(row["cost"], 2), gain=round(row["gain"], 4))
        row["steps"] = None if row["steps"] == STEPS else row["steps"]
    facts = {"models": models, "prompts": prompts, "rows": table}
    TABLE.write_text(json.dumps(facts, indent=1) + "\n")


def plot(found: list[Row], path: Path) -> None:
    """Plot the referee's gain against the cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for row in found:
        name = row.way + (f" × {row.best_of}" if row.best_of > 1 else "")
        axes.errorbar(row.cost, row.gain, row.error, fmt="o")
        axes.annotate(name, (row.cost, row.gain), fontsize=8)
    axes.set(xscale="log", xlabel="cost, × plain sampling", ylabel="referee's gain, cosine")
    axes.axhline(0, color="grey", linewidth=0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    app()
