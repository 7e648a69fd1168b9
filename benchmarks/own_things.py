"""Measure whether a guide that learned five invented creatures draws the right one.

    python -m benchmarks.own_things learn --out own                 # the guide and the words
    python -m benchmarks.own_things draw --out own --count 4        # and who is recognised

All images have the same prompt, "a drawing". Only the name steers: by mini, by mini with learned
words (textual inversion, five images each), and by mini fine-tuned with attacks (twenty images
each). A linear probe on the features of a CLIP that took no part, trained on the creatures' own
images, names the creature.
"""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import torch
import typer

import clipguide
from clipguide import Clip, Drawing, TextToCanvas, TextToImage, load_clip
from clipguide.clip import load_parts
from clipguide.clip.concepts import with_concept
from clipguide.finetune.guiding import GuidingConfig, for_guiding
from clipguide.finetune.inversion import Inversion
from clipguide.images import contact_sheet
from clipguide.prompts import read_lines
from clipguide.zero_shot import LinearProbe, fit_probe

ROOT = Path(__file__).parents[1]
CREATURES = runpy.run_path(str(ROOT / "samples" / "own" / "creatures.py"))
NAMES, picture = list(CREATURES["SHAPES"]), CREATURES["draw"]
BACKGROUND = Path(clipguide.__file__).parent / "zero_shot" / "background.txt"
SHOTS, FEW = 20, 5
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def learn(out: Path = Path("own"), steps: int = 120) -> None:
    """Write the fine-tuned guide to OUT/guide, and the words to OUT/NAME.safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    parts = load_parts("mini")
    for name in NAMES:
        began = time.process_time()
        word = Inversion(parts, [picture(name, k) for k in range(FEW)], name)
        cosine = max(step.cosine for step in word)
        word.concept().save(out / f"{name}.safetensors")
        print(f"{name}: cosine {cosine:.2f}, {time.process_time() - began:.1f} s of the processor")
    classes = [*NAMES, *read_lines(BACKGROUND, what="names", comments=True)]
    config = GuidingConfig(steps=steps, keep=0.2, warmup=10)
    batches = CREATURES["batches"](SHOTS, steps)
    for step in for_guiding(parts, batches, classes=classes, config=config):
        if step.index % 10 == 0:
            print(f"step {step.index}: {step.loss:.3f}, {step.minutes:.1f} min", flush=True)
    parts.save(out / "guide")


def probe_of(clip: Clip) -> LinearProbe:
    """Return the probe of the creatures' own images, those that the fine-tuned guide has seen."""
    pictures = [picture(name, k) for name in NAMES for k in range(SHOTS)]
    label = torch.arange(len(NAMES)).repeat_interleave(SHOTS)
    return fit_probe(clip.encode_pictures(pictures), label)


@app.command()
def draw(
    out: Path = Path("own"),
    count: int = 4,
    steps: int = 20,
    strength: float = 1.6,
    how: str = "generate",
    measure: str = str(ROOT / "training" / "cache" / "clip" / "referee"),
) -> None:
    """Draw COUNT images of each creature in each way. Write a sheet of each way to OUT, and print
    the shares."""
    stock = load_clip("mini")
    ways = {
        "stock": stock,
        "words": with_concept(stock, *[out / f"{name}.safetensors" for name in NAMES]),
        "fine-tuned": load_clip(out / "guide"),
    }
    judge = load_clip(measure)
    probe, label = probe_of(judge), torch.arange(len(NAMES)).repeat_interleave(count)
    paint = TextToImage() if how == "generate" else TextToCanvas("fourier")
    for way, clip in ways.items():
        paint.clip = clip
        if how == "generate":
            settings = {"steps": steps, "cfg": 1.0, "strength": strength, "count": count}
            drawn = paint(["a drawing"] * len(NAMES), guide=NAMES, **settings)
        else:
            paint.judge = None
            drawn = paint(NAMES, Drawing(steps=steps, cutouts=3, sds=0.0), count=count)
        pictures = [p.image for p in drawn]
        found = probe.logits(judge.encode_pictures(pictures)).argmax(1)
        labels = [f"{NAMES[a]}: {NAMES[b]}" for a, b in zip(label.tolist(), found.tolist())]
        contact_sheet(pictures, labels=labels, columns=count).save(out / f"{how}-{way}.png")
        share = (found == label).float().mean().item()
        print(f"{how}, {way}: {100 * share:.0f} % of {len(label)}", flush=True)


if __name__ == "__main__":
    app()
