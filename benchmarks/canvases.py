"""What the loop draws on each canvas, by the referee, which guides, keeps and stops nothing.

    python -m benchmarks.canvases draw      # prompts x canvases: the referee's top-5, and a sheet
    python -m benchmarks.canvases race      # time to the classic loop's final score, ours ÷ its
    python -m benchmarks.canvases longer    # what is kept of 2,000 steps at 3 x the rate
    python -m benchmarks.canvases tile      # across a tile's seam ÷ inside
    python -m benchmarks.canvases memory    # peaks: 512 cutouts ÷ 32, and 1024 x 1024 pixels

The referee is `python -m training.clip export referee`. Pictures are kept in the cache, and those
that are there are not drawn again: a run that was stopped goes on.

Shapes: B pictures, K concepts, D of an embedding.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from clipguide.pipelines.drawing import CANVASES, Drawing
from clipguide.pipelines.text_to_canvas import TextToCanvas
from PIL import Image

from clipguide import Clip, images, load_clip

HERE = Path(__file__).parent
REFEREE = Path("training/cache/clip/referee")
CACHE = Path("training/cache/canvases")
OUT = HERE / "canvases.json"
SHEET = HERE.parent / "samples" / "canvases.png"
SIDE = 96  # pixels of a picture on the sheet
Referee = Annotated[Path, typer.Option("--referee", help="The referee's open_clip folder.")]
app = typer.Typer(add_completion=False, help=__doc__)


class Measure:
    """The referee, with the prompts of the mini generator's things in a fixed order."""

    def __init__(self, folder: Path) -> None:
        from training.evaluate.clips import all_drawings
        from training.evaluate.samples import concept_prompts, things_drawn

        drawings = all_drawings()
        self.clip: Clip = load_clip(str(folder))
        self.text_KD = self.clip.encode_text(drawings.concepts)
        every, of = concept_prompts(things_drawn(drawings.concepts))
        order = random.Random(0).sample(range(len(every)), len(every))
        self.prompts = [every[i] for i in order]
        self.place = {every[i]: drawings.place[of[i]] for i in order}

    def score(self, prompt: str, image_13HW: torch.Tensor) -> float:
        """Cosine of a picture with its prompt."""
        with torch.no_grad():
            unit_1D = self.clip.encode_image(image_13HW)
        return (unit_1D @ self.clip.encode_text([prompt]).T).item()

    def top5(self, prompt: str, picture: Image.Image) -> bool:
        """Whether its thing is among the five concepts that fit the picture best."""
        from training.evaluate.drawings import ranks

        target_B = torch.tensor([self.place[prompt]])
        return ranks(self.clip.encode_pictures([picture]), self.text_KD, target_B).item() < 5


def keep(name: str, facts: dict) -> None:
    """Put what was measured beside what was."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    known[name] = facts
    OUT.write_text(json.dumps(known, indent=1) + "\n")
    typer.echo(f"{name}: {json.dumps(facts)}")


@app.command("draw")
def command_draw(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    canvases: Annotated[str, typer.Option(help="By commas.")] = ",".join(CANVASES),
    sheet: Annotated[Path, typer.Option(help="A contact sheet.")] = SHEET,
) -> None:
    """Each prompt on each canvas at the default settings and seed 0, none picked."""
    measure = Measure(referee)
    rows: dict[str, list[Image.Image]] = {}
    for canvas in canvases.split(","):
        owner, rows[canvas], hits, seconds = TextToCanvas(canvas), [], [], []
        for prompt in measure.prompts[:prompts]:
            path = CACHE / canvas / f"{prompt}.png"
            if not path.exists():
                begin = time.perf_counter()
                (picture,) = owner(prompt, Drawing(), seed=0)
                took = time.perf_counter() - begin
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.image.save(path)
                path.with_suffix(".txt").write_text(f"{took:.2f}")
            rows[canvas].append(images.load(path))
            seconds.append(float(path.with_suffix(".txt").read_text()))
            hits.append(measure.top5(prompt, rows[canvas][-1]))
        facts = {"top5": statistics.fmean(hits), "prompts": len(hits)}
        keep(f"draw {canvas}", {**facts, "seconds": round(statistics.median(seconds), 1)})
    cells, labels = [], []
    for i, prompt in enumerate(measure.prompts[:prompts]):
        cells += [rows[canvas][i].resize((SIDE, SIDE), Image.LANCZOS) for canvas in rows]
        labels += [f"{prompt}, {canvas}" if c == 0 else canvas for c, canvas in enumerate(rows)]
    images.contact_sheet(cells, labels=labels, columns=2 * len(rows)).save(sheet)


@app.command("race")
def command_race(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Of the classic loop.")] = 100,
    cutouts: Annotated[int, typer.Option(min=1, help="A step, of both.")] = 32,
) -> None:
    """Seconds until our picture has the referee's score of the classic loop's last one, ÷ the
    seconds of that loop. Both on mini, with the same cutouts, dtype and threads; ours with the
    rate's fall planned for as many steps. Where it never has that score, it counts as all its
    time."""
    from benchmarks.classic import Classic

    measure, owner, ratios = Measure(referee), TextToCanvas("vqgan", judge=""), []
    for prompt in measure.prompts[:prompts]:
        torch.manual_seed(0)
        side = owner.start(prompt, Drawing()).loop.canvas.height
        loop = Classic(owner.net, owner.clip, [prompt], height=side, width=side, cutouts=cutouts)
        loop.step()  # warm
        begin = time.perf_counter()
        for _ in range(steps):
            loop.step()
        limit = time.perf_counter() - begin
        wanted, spent, reached = measure.score(prompt, loop.image().clamp(0, 1)), 0.0, False
        run = owner.start(prompt, Drawing(steps=steps, cutouts=cutouts))
        while not (run.done or reached):
            begin = time.perf_counter()
            step = run.step()
            spent += time.perf_counter() - begin
            if run.index % 5 == 0:
                reached = measure.score(prompt, step.image()) >= wanted
        ratios.append(spent / limit)
        typer.echo(f"{prompt}: {'reached' if reached else 'not reached'} in {ratios[-1]:.2f}")
    facts = {"median": statistics.median(ratios), "mean": statistics.fmean(ratios)}
    keep("race", {**facts, "prompts": len(ratios), "cutouts": cutouts, "steps": steps})


@app.command("longer")
def command_longer(
    referee: Referee = REFEREE,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    steps: Annotated[int, typer.Option(min=200, help="In all.")] = 2000,
) -> None:
    """The picture that the judge keeps of a run at three times the rate, against that of step 200
    as it was, by the referee: how often it is at least as good."""
    measure, owner, better = Measure(referee), TextToCanvas("vqgan"), []
    drawing = Drawing(steps=steps, lr=3 * CANVASES["vqgan"].lr, patience=30)
    for prompt in measure.prompts[:prompts]:
        run, early = owner.start(prompt, drawing), 0.0
        for step in run:
            if step.index == 199:
                early = measure.score(prompt, step.image())
        late = measure.score(prompt, run.loop.best())
        better.append(late >= early)
        typer.echo(f"{prompt}: {early:.3f} at step 200, {late:.3f} kept of {run.index}")
    keep("longer", {"at least as good": statistics.fmean(better), "prompts": len(better)})


@app.command("tile")
def command_tile(
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 6,
    steps: Annotated[int, typer.Option(min=1, help="Of each.")] = 30,
) -> None:
    """The mean difference of pixels across the wrapped seams ÷ that across the same places of the
    codes inside, of a VQGAN's tiles, and of pictures that are none."""
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
    """Peaks of processes of their own, in GB; one of them only loads the models."""
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
    """Gigabytes that a process had at most."""
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
