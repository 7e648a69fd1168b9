"""Measure how much of the VAE's gain each cheaper decoder keeps, on the embedded generator.

    python -m benchmarks.decoders draw --prompts 100 --minutes 60   # continues after a stop
    python -m benchmarks.decoders table        # prints the table, and writes it into docs/memory.md

The objects are a random list. Each is drawn without steering, and with the default steering and
each decoder, from the same seed. The gain is the difference of the image's cosine similarity with
the prompt to that of the image without steering: by the guide, whose gradient steered, and by a
CLIP that took no part. The share that is kept is the mean gain divided by that of the VAE, with its
standard error by 1,000 resamplings of the prompts. Seconds are processor time. The levels "single"
and "layers" take the exact gradient (tests/test_ladder.py), and are left out.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
import typer
from clipguide.pipelines.generation import STEPS, Generation
from clipguide.pipelines.text_to_image import TextToImage

from benchmarks.records import Records, digest_of, models_of
from clipguide import Similarity, load_clip
from clipguide.images import to_tensor
from clipguide.mini import known

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "memory.md"
RECORDS = Path("training/cache/decoders.jsonl")
RESULTS = HERE / "decoders.json"
BEGIN, END = "<!-- kept -->\n", "<!-- end of kept -->"
PLAIN, EXACT = "plain", "vae:whole"
DECODERS = (EXACT, "vae:half", "vae:tiles2", "vae:tiles4", "linear")
RESAMPLINGS = 1000
TASK, SHIPPED = "decoders", ("generator", "guide", "judge")


@dataclass(frozen=True)
class Drawn:
    """One image: its decoder, or "plain" if it was not steered; the cosine similarities by the
    guide and by the other CLIP; seconds."""

    prompt: str
    decoder: str
    guide: float
    other: float
    seconds: float


@dataclass(frozen=True)
class Kept:
    """The row of a decoder: the mean gains in thousandths of a cosine, the shares of the exact
    decoder's gains, each with its standard error, and the median of the time divided by that of
    plain sampling."""

    decoder: str
    guide: float
    guide_kept: tuple[float, float]
    other: float
    other_kept: tuple[float, float]
    cost: float


def things(number: int) -> list[str]:
    """Return prompts of this number of objects that the generator was trained on."""
    from training.evaluate.samples import phrase

    names = known.things()
    return [phrase(thing) for thing in random.Random(0).sample(names, min(number, len(names)))]


def default(model: TextToImage, settings: Generation) -> str:
    """Return the decoder that "auto" chooses for this generator."""
    return model("a fox", settings.changed({"steps": 1}))[0].recipe.decoder


def rows(drawn: list[Drawn]) -> list[Kept]:
    """Return one row for each decoder, over the prompts that all decoders drew."""
    table: dict[str, dict[str, Drawn]] = {}
    for one in drawn:
        table.setdefault(one.decoder, {})[one.prompt] = one
    prompts = sorted(set.intersection(*(set(of) for of in table.values())))

    def gains(decoder: str, clip: str) -> torch.Tensor:
        pairs = [(table[decoder][p], table[PLAIN][p]) for p in prompts]
        return torch.tensor([getattr(a, clip) - getattr(b, clip) for a, b in pairs])

    found = []
    for decoder in table:
        if decoder == PLAIN:
            continue
        costs = [table[decoder][p].seconds / table[PLAIN][p].seconds for p in prompts]
        values = {"cost": float(torch.tensor(costs).median())}
        for clip in ("guide", "other"):
            gain_P, exact_P = gains(decoder, clip), gains(EXACT, clip)
            values[clip] = 1000 * float(gain_P.mean())
            values[f"{clip}_kept"] = share(gain_P, exact_P)
        found.append(Kept(decoder=decoder, **values))
    return found


def share(gain_P: torch.Tensor, exact_P: torch.Tensor) -> tuple[float, float]:
    """Return the ratio of the means, and its deviation over resamplings of the prompts."""
    generator = torch.Generator().manual_seed(0)
    pick_RP = torch.randint(len(gain_P), (RESAMPLINGS, len(gain_P)), generator=generator)
    ratio_R = gain_P[pick_RP].mean(1) / exact_P[pick_RP].mean(1)
    return float(gain_P.mean() / exact_P.mean()), float(ratio_R.std())


def markdown(found: list[Kept], chosen: str) -> str:
    lines = [
        "| decoder | gain by the guide, 10⁻³ | of the VAE's | gain by the judge, 10⁻³ | "
        "of the VAE's | time ÷ plain |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda row: list(DECODERS).index(row.decoder)):
        name = row.decoder + (" (default here)" if row.decoder == chosen else "")
        kept = [f"{100 * v:.0f} ± {100 * e:.0f} %" for v, e in (row.guide_kept, row.other_kept)]
        if row.decoder == EXACT:
            kept = ["100 %", "100 %"]
        lines.append(
            f"| {name} | {row.guide:+.1f} | {kept[0]} | {row.other:+.1f} | {kept[1]} | "
            f"{row.cost:.2f} |"
        )
    return "\n".join(lines)


def read(path: Path) -> tuple[Records, list[Drawn]]:
    """Return the records of the present models, and the images that these drew so far."""
    records = Records(path, digest_of(models_of(*SHIPPED)))
    names = [field.name for field in fields(Drawn)]
    return records, [Drawn(**{name: row[name] for name in names}) for row in records.of(TASK)]


app = typer.Typer(add_completion=False, help=__doc__)
File = Annotated[Path, typer.Option(help="Where the scores are, one image a line.")]


@app.command("draw")
def command_draw(
    prompts: Annotated[int, typer.Option(help="How many things.")] = 100,
    other: Annotated[str, typer.Option(help="The CLIP that only looks.")] = "mini-judge",
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = STEPS,
    minutes: Annotated[float, typer.Option(help="Begin no prompt after that.")] = 1e9,
    records: File = RECORDS,
) -> None:
    """Draw and score prompts that are not in the records yet."""
    end = time.monotonic() + 60 * minutes
    model, looks = TextToImage(), load_clip(other)
    model.judge = None  # it would reduce the steering
    settings = Generation(steps=steps, method="shortcut")
    kept, drawn = read(records)
    done = {(one.prompt, one.decoder) for one in drawn}
    for prompt in things(prompts):
        missing = [name for name in (PLAIN, *DECODERS) if (prompt, name) not in done]
        if not missing:
            continue
        if time.monotonic() > end:
            break
        found = []
        for name in missing:
            changes = {"strength": 0.0} if name == PLAIN else {"decoder": name}
            start = time.process_time()  # other jobs may use the cores
            (picture,) = model(prompt, settings.changed(changes))
            seconds = time.process_time() - start
            image_13HW = to_tensor([picture.image])
            scores = [
                round(float(Similarity(clip, prompt, views=None).score(image_13HW)), 5)
                for clip in (model.clip, looks)
            ]
            found.append(Drawn(prompt, name, *scores, round(seconds, 3)))
        for one in found:
            kept.add(TASK, **asdict(one))
        typer.echo(f"{prompt}: {len(found)} images")


@app.command("table")
def command_table(
    records: File = RECORDS,
    other: Annotated[str, typer.Option(help="The CLIP that only looked.")] = "mini-judge",
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = STEPS,
    document: Annotated[Path, typer.Option(help="Where the table goes.")] = DOCUMENT,
    out: Annotated[Path, typer.Option(help="Where its figures go, as JSON.")] = RESULTS,
) -> None:
    """Print the table of what was drawn, as Markdown, and write it into the document."""
    _, drawn = read(records)
    if not drawn:
        raise typer.BadParameter(f"{records} has nothing by the models as they are: draw first.")
    number, found = len({one.prompt for one in drawn}), rows(drawn)
    facts = {"torch": torch.__version__, "prompts": number, "steps": steps, "other": other}
    facts["models"] = models_of(*SHIPPED)
    facts["rows"] = [asdict(row) for row in found]
    out.write_text(json.dumps(facts, indent=1) + "\n")
    table = markdown(found, default(TextToImage(), Generation(method="shortcut")))
    said = f"{number} prompts, {steps} steps. The judge is {other}, which did not steer."
    typer.echo(table)
    text = document.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    document.write_text(f"{before}{BEGIN}{table}\n\n{said}\n{END}{after}")


if __name__ == "__main__":
    app()
