"""What each way of steering gains, and what it costs: the mini generator, by a CLIP of its own.

    python -m benchmarks.steering draw --minutes 60    # goes on where it was stopped
    python -m benchmarks.steering table                # prints the table, writes steering.json

Each prompt is drawn in all ways, one picture at a time, one way after another, in one process with
the same number of threads, in float32, from the same seeds; methods that use cutouts use the same
number. Cost is the median over pictures of seconds ÷ those of plain sampling of the same prompt.
"best of" keeps, of so many pictures, the one that the guide likes best. Score, top-5 and gain are
those of the referee, which guides, stops and picks nothing (`python -m training.clip export
referee`). The community rows are `benchmarks/community.py`.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from clipguide.pipelines.generation import CFG, STEPS
from clipguide.pipelines.text_to_image import TextToImage

from benchmarks import community
from clipguide import Cutouts, Similarity, load_clip, steer
from clipguide.guidance import Backprop, Lookahead, Particles, Shortcut
from clipguide.guidance.auto import TABLE
from clipguide.guidance.contract import Method
from clipguide.guidance.decoders import Decoder

HERE = Path(__file__).parent
RECORDS = Path("training/cache/steering.jsonl")
VIEWS = Cutouts()
WHOLE = Cutouts(number=0)  # the picture alone
EARLY, LATE = (0.5, 1.0), (0.0, 0.5)  # halves of the noise levels


@dataclass(frozen=True)
class Way:
    """A method, the community's at a scale, or none; drawn with seeds 0 … seeds - 1. Groups of
    `best_of` of these are ranked."""

    name: str
    method: Method | float | None
    seeds: int = 1
    best_of: tuple[int, ...] = (1,)
    views: Cutouts = VIEWS
    decoder: str = "vae"
    judged: bool = False  # mini's judge may weaken the steering, and stop it


PLAIN = Way("plain", None, 8, (1, 2, 4, 8))
WAYS = (
    PLAIN,
    Way("shortcut 0.1", Shortcut(), 8, (1, 2)),
    Way("shortcut 0.2", Shortcut(strength=0.2)),
    Way("shortcut 0.5", Shortcut(strength=0.5)),
    Way("shortcut 0.2, every 2", Shortcut(strength=0.2, every=2)),
    Way("shortcut 0.1, travel 2", Shortcut(travel=2)),
    Way("sparing 0.1", Shortcut(), 2, (1, 2), views=WHOLE, decoder="linear"),
    Way("sparing 0.3", Shortcut(strength=0.3), views=WHOLE, decoder="linear"),
    Way("sparing 0.3, every 3", Shortcut(strength=0.3, every=3), 4, (1, 2, 4), WHOLE, "linear"),
    Way("sparing 0.6, every 3", Shortcut(strength=0.6, every=3), 2, (1, 2), WHOLE, "linear"),
    Way("whole 0.2, every 3", Shortcut(strength=0.2, every=3), 2, (1, 2), WHOLE),
    Way("whole 0.4, every 3", Shortcut(strength=0.4, every=3), 2, (1, 2), WHOLE),
    Way(
        "sparing 0.6, every 3, early",
        Shortcut(strength=0.6, every=3, window=EARLY),
        1,
        (1,),
        WHOLE,
        "linear",
    ),
    Way(
        "sparing 0.6, every 3, late",
        Shortcut(strength=0.6, every=3, window=LATE),
        1,
        (1,),
        WHOLE,
        "linear",
    ),
    Way("shortcut 0.2, early", Shortcut(strength=0.2, window=EARLY)),
    Way("shortcut 0.2, late", Shortcut(strength=0.2, window=LATE)),
    Way("shortcut 0.5, judged", Shortcut(strength=0.5), 4, judged=True),
    Way("particles 4", Particles(number=4)),
    Way("lookahead 4", Lookahead(), 2, (1, 2)),
    Way("backprop 0.1", Backprop()),
    Way("community 100", 100.0),
    Way("community 1000", 1000.0),
)


@dataclass
class Drawn:
    """One picture: seconds, the referee's cosine and whether its thing is in the referee's top
    five, and the guide's cosine."""

    prompt: int
    way: str
    seed: int
    seconds: float
    score: float
    top5: bool
    guide: float


@dataclass
class Row:
    """One way, `best_of` so many: what it costs (plain is 1), the referee's mean score, its gain
    over plain of the same seeds with its standard error over prompts, its top-5, the guide's mean
    score."""

    way: str
    best_of: int
    cost: float
    score: float
    gain: float
    error: float
    top5: float
    guide: float
    method: str = "shortcut"
    options: dict = field(default_factory=lambda: {"strength": 0.0})  # plain sampling
    decoder: str = "vae"
    cutouts: int = 0


def draw(model: TextToImage, way: Way, prompt: str, seed: int) -> torch.Tensor:
    """image_1_3HW in [0, 1]."""
    generator = [torch.Generator().manual_seed(seed)]
    settings = {
        "prompt": [prompt],
        "num_inference_steps": STEPS,
        "guidance_scale": CFG,
        "generator": generator,
        "output_type": "pt",
    }
    if isinstance(way.method, float):
        torch.manual_seed(seed)
        latents = community.sample(
            model.pipe,
            model.clip,
            [prompt],
            steps=STEPS,
            cfg=CFG,
            scale=way.method,
            number=len(VIEWS),
            generator=generator,
        )
        with torch.no_grad():
            return Decoder(model.pipe)(latents).clamp(0, 1)
    if way.method is None:
        return model.pipe(**settings).images.clamp(0, 1)
    objective = Similarity(model.clip, prompt, views=way.views)
    judge = model.judge if way.judged else None
    with steer(model.pipe, objective, method=way.method, decoder=way.decoder, judge=judge) as s:
        if isinstance(way.method, Particles):
            number = way.method.number
            settings["prompt"] = [prompt] * number
            settings["generator"] = [
                torch.Generator().manual_seed(seed + k * 1_000_000) for k in range(number)
            ]
        images = s(**settings).images.clamp(0, 1)
        return images[objective.score(images).argmax()][None]


app = typer.Typer(add_completion=False, help=__doc__)
Records = Annotated[Path, typer.Option(help="Where the pictures' scores are, one a line.")]


@app.command("draw")
def command_draw(
    referee: Annotated[Path, typer.Option(help="The referee's open_clip folder.")] = Path(
        "training/cache/clip/referee"
    ),
    clip: Annotated[str, typer.Option(help="The guide.")] = "mini",
    prompts: Annotated[int, typer.Option(help="How many of the 200 prompts, in an order.")] = 200,
    ways: Annotated[str, typer.Option(help="Only ways that begin so, by commas.")] = "",
    seeds: Annotated[int, typer.Option(help="At most so many pictures of a way.")] = 8,
    minutes: Annotated[float, typer.Option(help="Begin no prompt after that.")] = 1e9,
    records: Records = RECORDS,
) -> None:
    """Draw and score prompts that are not in the records yet."""
    from training.evaluate.clips import all_drawings
    from training.evaluate.drawings import ranks
    from training.evaluate.samples import concept_prompts, things_drawn

    end = time.monotonic() + 60 * minutes
    drawings, judge, model = all_drawings(), load_clip(str(referee)), TextToImage(clip=clip)
    every, of = concept_prompts(things_drawn(drawings.concepts))
    order = random.Random(0).sample(range(len(every)), len(every))[:prompts]
    done = {(d.prompt, d.way) for d in read(records)} if records.exists() else set()
    text_KD = judge.encode_text(drawings.concepts)
    wanted = [
        w for w in WAYS if w is PLAIN or not ways or w.name.startswith(tuple(ways.split(",")))
    ]
    draw(model, PLAIN, every[0], 0)  # warm
    records.parent.mkdir(parents=True, exist_ok=True)
    for i in order:
        missing = [way for way in wanted if (i, way.name) not in done]
        if not missing:
            continue
        if time.monotonic() > end:
            break
        text_1D, found = judge.encode_text([every[i]]), []
        guide = Similarity(model.clip, every[i], views=None)
        target = torch.tensor([drawings.place[of[i]]])
        for way in missing:
            for seed in range(min(seeds, way.seeds)):
                start = time.perf_counter()
                image_13HW = draw(model, way, every[i], seed)
                seconds = time.perf_counter() - start
                vector_1D = judge.encode_image(image_13HW)
                found.append(
                    Drawn(
                        prompt=i,
                        way=way.name,
                        seed=seed,
                        seconds=round(seconds, 4),
                        score=round((vector_1D @ text_1D.T).item(), 5),
                        top5=bool(ranks(vector_1D, text_KD, target).item() < 5),
                        guide=round(guide.score(image_13HW).item(), 5),
                    )
                )
        with records.open("a") as file:  # all of a prompt or nothing
            file.writelines(json.dumps(asdict(drawn)) + "\n" for drawn in found)
        typer.echo(f"{every[i]}: {len(found)} pictures")


def read(records: Path) -> list[Drawn]:
    """What was drawn so far."""
    return [Drawn(**json.loads(line)) for line in records.read_text().splitlines()]


def rows(drawn: list[Drawn]) -> list[Row]:
    """One row for each way and number of candidates."""
    table: dict[str, dict[int, list[Drawn]]] = {}
    for one in drawn:
        table.setdefault(one.way, {}).setdefault(one.prompt, []).append(one)
    plain = {(d.prompt, d.seed): d.score for d in drawn if d.way == PLAIN.name}
    second = {p: mean(d.seconds for d in found) for p, found in table[PLAIN.name].items()}
    found = []
    for way in WAYS:
        for best_of in way.best_of if way.name in table else ():
            kept = {p: best(pictures, best_of) for p, pictures in table[way.name].items()}
            kept = {p: pictures for p, pictures in kept.items() if pictures}
            if not kept:
                continue
            gains = [
                mean(d.score for d in kept[p]) - mean(plain[p, d.seed] for d in table[way.name][p])
                for p in kept
            ]
            costs = [d.seconds / second[p] for p in kept for d in table[way.name][p]]
            every = [d for pictures in kept.values() for d in pictures]
            found.append(
                Row(
                    way=way.name,
                    best_of=best_of,
                    cost=best_of * statistics.median(costs),
                    score=mean(mean(d.score for d in pictures) for pictures in kept.values()),
                    gain=mean(gains),
                    error=statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0,
                    top5=mean(d.top5 for d in every),
                    guide=mean(d.guide for d in every),
                    **settings(way),
                )
            )
    return found


def settings(way: Way) -> dict:
    """What of a row says how it was drawn, for those that are not plain."""
    if not isinstance(way.method, Method):
        return {} if way.method is None else {"method": "community", "options": {}}
    seen = {"decoder": way.decoder, "cutouts": way.views.number}
    return {"method": way.method.name, "options": way.method.options(), **seen}


def frontier(found: list[Row]) -> list[Row]:
    """The rows of the shortcut, and plain, that none of these beats at their cost or below."""
    kept: list[Row] = []
    for row in sorted(found, key=lambda row: row.cost):
        if row.method == "shortcut" and not (row.best_of > 1 and "travel" in row.options):
            if not kept or row.gain > kept[-1].gain:
                kept.append(row)
    return kept


def best(pictures: list[Drawn], number: int) -> list[Drawn]:
    """The guide's favourite of each whole group of so many."""
    groups = [pictures[k : k + number] for k in range(0, len(pictures), number)]
    return [max(g, key=lambda d: d.guide) for g in groups if len(g) == number]


def worse(drawn: list[Drawn], way: str) -> tuple[float, float, int]:
    """Of the prompts, the share whose mean score over the seeds, paired with plain sampling's, is
    worse; by more than two standard errors; and of how many seeds."""
    table: dict[tuple[int, int], dict[str, float]] = {}
    for one in drawn:
        table.setdefault((one.prompt, one.seed), {})[one.way] = one.score
    gains: dict[int, list[float]] = {}
    for (prompt, _), score in table.items():
        if way in score and PLAIN.name in score:
            gains.setdefault(prompt, []).append(score[way] - score[PLAIN.name])
    seeds = min(map(len, gains.values()))
    below = [mean(g) < 0 for g in gains.values()]
    error = [
        statistics.stdev(g) / len(g) ** 0.5 if len(g) > 1 else float("inf") for g in gains.values()
    ]
    far = [mean(g) < -2 * e for g, e in zip(gains.values(), error, strict=True)]
    return mean(below), mean(far), seeds


def mean(values) -> float:
    return statistics.fmean(values)


@app.command("table")
def command_table(
    records: Records = RECORDS,
    out: Annotated[Path, typer.Option(help="A JSON file, and a plot beside it.")] = HERE
    / "steering.json",
    auto: Annotated[bool, typer.Option(help="Write what the method auto chooses from.")] = False,
) -> None:
    """Print the table of what was drawn, as Markdown, and keep it."""
    drawn = read(records)
    found = rows(drawn)
    prompts = len({d.prompt for d in drawn})
    typer.echo(markdown(found))
    share = {}
    for name in ("shortcut 0.1", "shortcut 0.5", "shortcut 0.5, judged"):
        if any(d.way == name for d in drawn):
            below, far, seeds = worse(drawn, name)
            share[name] = {"worse": below, "worse by two standard errors": far, "seeds": seeds}
            typer.echo(
                f"{name}, paired over {seeds} seeds: worse on {below:.1%} of the {prompts} prompts,"
                f" by more than two standard errors on {far:.1%}."
            )
    facts = {"prompts": prompts, "paired": share}
    out.write_text(json.dumps({**facts, "rows": [asdict(r) for r in found]}, indent=1) + "\n")
    plot(found, out.with_suffix(".png"))
    if auto:
        names = ("method", "options", "best_of", "decoder", "cutouts", "cost", "gain")
        table = [{name: asdict(row)[name] for name in names} for row in frontier(found)]
        for row in table:
            row.update(cost=round(row["cost"], 2), gain=round(row["gain"], 4))
        TABLE.write_text(json.dumps({"prompts": prompts, "rows": table}, indent=1) + "\n")


def markdown(found: list[Row]) -> str:
    """The rows, dearest last."""
    lines = ["| way | cost | gain, 10⁻³ | top-5 |", "|---|---|---|---|"]
    for row in sorted(found, key=lambda row: row.cost):
        name = row.way + (f", best of {row.best_of}" if row.best_of > 1 else "")
        gain = f"{1000 * row.gain:+.1f} ± {1000 * row.error:.1f}" if row.gain else "–"
        lines.append(f"| {name} | {row.cost:.2f} | {gain} | {row.top5:.1%} |")
    return "\n".join(lines)


def plot(found: list[Row], path: Path) -> None:
    """The referee's gain against cost."""
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
