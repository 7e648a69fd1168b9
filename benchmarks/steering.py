"""What each way of steering gains, and what it costs: the mini generator, by a CLIP of its own.

    python -m benchmarks.steering --prompts 40 --seeds 2 --out benchmarks/steering.json

Every row draws the same prompts from the same seeds, one picture at a time, in one process, with
the same number of threads, in float32; methods that use cutouts use the same number. Cost is
seconds ÷ those of plain sampling in the same run. Score and top-5 are those of the referee, which
guides, stops and picks nothing (`python -m training.clip export referee`). The community row is
`benchmarks/community.py`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from clipguide.pipelines.text_to_image import CFG, STEPS, TextToImage

from benchmarks import community
from clipguide import Cutouts, Similarity, load_clip, steer
from clipguide.guidance import Backprop, BestOf, Lookahead, Method, Particles, Shortcut
from clipguide.guidance.decoders import Decoder

VIEWS = Cutouts()
WAYS: dict[str, Method | float | None] = {
    "plain": None,
    "best-of 2": BestOf(number=2),
    "best-of 4": BestOf(number=4),
    "best-of 8": BestOf(number=8),
    "shortcut 0.05": Shortcut(strength=0.05),
    "shortcut 0.1": Shortcut(),
    "shortcut 0.2": Shortcut(strength=0.2),
    "shortcut 0.3": Shortcut(strength=0.3),
    "shortcut 0.5": Shortcut(strength=0.5),
    "shortcut 0.1, every 2": Shortcut(every=2),
    "shortcut 0.1, travel 2": Shortcut(travel=2),
    "particles 4": Particles(number=4),
    "lookahead 4": Lookahead(),
    "backprop 0.1": Backprop(),
    "community 100": 100.0,
    "community 1000": 1000.0,
}


@dataclass
class Row:
    """One way: seconds a picture, the referee's mean cosine, its top-5, and both of the guide."""

    way: str
    seconds: float
    cost: float
    score: float
    top5: float
    guide: float
    worse: float  # share of prompts whose mean score fell by more than two standard errors


def draw(model: TextToImage, way, prompt: str, seeds: list[int]) -> torch.Tensor:
    """image_SB3HW in [0, 1], S seeds, one at a time."""
    found = []
    for seed in seeds:
        generator = [torch.Generator().manual_seed(seed)]
        settings = {
            "prompt": [prompt],
            "num_inference_steps": STEPS,
            "guidance_scale": CFG,
            "generator": generator,
            "output_type": "pt",
        }
        if isinstance(way, float):
            torch.manual_seed(seed)
            latents = community.sample(
                model.pipe,
                model.clip,
                [prompt],
                steps=STEPS,
                cfg=CFG,
                scale=way,
                number=len(VIEWS),
                generator=generator,
            )
            with torch.no_grad():
                found.append(Decoder(model.pipe)(latents)[0])
            continue
        if way is None:
            found.append(model.pipe(**settings).images[0])
            continue
        objective = Similarity(model.clip, prompt, views=VIEWS)
        with steer(model.pipe, objective, method=way) as s:
            if isinstance(way, Particles):
                settings["prompt"] = [prompt] * way.number
                settings["generator"] = [
                    torch.Generator().manual_seed(seed + k * 1_000_000) for k in range(way.number)
                ]
            images = s(**settings).images
            found.append(images[objective.score(images).argmax()])
    return torch.stack(found).clamp(0, 1)


def main(
    referee: Annotated[Path, typer.Option(help="The referee's open_clip folder.")] = Path(
        "training/cache/clip/referee"
    ),
    clip: Annotated[str, typer.Option(help="The guide.")] = "mini",
    prompts: Annotated[int, typer.Option(help="How many of the 200 prompts.")] = 200,
    seeds: Annotated[int, typer.Option(help="Pictures of each.")] = 4,
    ways: Annotated[str, typer.Option(help="Only rows that begin so, by commas.")] = "",
    out: Annotated[Path | None, typer.Option(help="A JSON file, and a plot beside it.")] = None,
) -> None:
    """Draw, score and print the table."""
    from training.evaluate.clips import all_drawings
    from training.evaluate.drawings import ranks
    from training.evaluate.samples import concept_prompts, things_drawn

    drawings, judge, model = all_drawings(), load_clip(str(referee)), TextToImage(clip=clip)
    every, of = concept_prompts(things_drawn(drawings.concepts))
    chosen = [i * len(every) // prompts for i in range(min(prompts, len(every)))]
    text_KD = judge.encode_text(drawings.concepts)
    wanted = [w for w in WAYS if not ways or w == "plain" or w.startswith(tuple(ways.split(",")))]
    draw(model, None, every[0], [0])  # warm
    rows, plain = [], None
    for way in wanted:
        score_PS, guide_PS, hit, seconds = [], [], [], 0.0
        for i in chosen:
            start = time.perf_counter()
            image_SB3HW = draw(model, WAYS[way], every[i], list(range(seeds)))
            seconds += time.perf_counter() - start
            vector_SD = judge.encode_image(image_SB3HW)
            score_PS.append(vector_SD @ judge.encode_text([every[i]])[0])
            guide_PS.append(Similarity(model.clip, every[i], views=None).score(image_SB3HW))
            target = torch.full((seeds,), drawings.place[of[i]])
            hit.append((ranks(vector_SD, text_KD, target) < 5).float())
        score_PS = torch.stack(score_PS)
        plain = score_PS if plain is None else plain
        gain_PS = score_PS - plain
        error_P = (
            gain_PS.std(1) / seeds**0.5 if seeds > 1 else torch.full((len(chosen),), torch.inf)
        )
        rows.append(
            Row(
                way,
                seconds / len(chosen) / seeds,
                seconds / len(chosen) / seeds / (rows[0].seconds if rows else 1),
                score_PS.mean().item(),
                torch.stack(hit).mean().item(),
                torch.stack(guide_PS).mean().item(),
                (gain_PS.mean(1) < -2 * error_P).float().mean().item(),
            )
        )
        rows[0].cost = 1.0
        r = rows[-1]
        typer.echo(
            f"{r.way:24s} {r.seconds:6.2f} s  {r.cost:5.2f} x  referee {r.score:.4f} "
            f"({r.score - rows[0].score:+.4f})  top-5 {r.top5:.3f}  guide {r.guide:.3f}  "
            f"worse {r.worse:.2f}"
        )
    if out:
        facts = {"prompts": len(chosen), "seeds": seeds, "threads": torch.get_num_threads()}
        out.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
        plot(rows, out.with_suffix(".png"))


def plot(rows: list[Row], path: Path) -> None:
    """The referee's gain against cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for row in rows[1:]:
        axes.plot(row.cost, row.score - rows[0].score, "o")
        axes.annotate(row.way, (row.cost, row.score - rows[0].score), fontsize=8)
    axes.set(xscale="log", xlabel="cost, × plain sampling", ylabel="referee's gain, cosine")
    axes.axhline(0, color="grey", linewidth=0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    typer.run(main)
