"""A plain CLIP made a guide by the package's own means, and the guide's figure before and after.

    python -m training.clip export guide --stage guide --folder training/cache/clip/guide-plain
    python -m training.guiding train --clip training/cache/clip/guide-plain --out my-guide
    python -m training.guiding train … --method fare --norm linf     # without labels, another ball
    python -m training.guiding measure training/cache/clip/guide-plain my-guide mini

The drawings are those that mini was trained on, with the names of their concepts; no other teacher,
no captions, no colours: what `clipguide finetune --for-guiding` has of a folder. It resumes from
`state.pt` in the folder. The figures are the referee's; the hands are chosen by mini-judge on
concepts that are not measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import typer

from clipguide import load_clip
from clipguide.clip import Clip, folding, load_parts
from clipguide.finetune.figure import Hand, choose, clean_top1, guide_figure
from clipguide.finetune.guiding import GuidingConfig, guiding_fit
from training import common
from training.clip import CACHE, MIX
from training.data.compose import TrainingSet
from training.evaluate.drawings import Drawings
from training.evaluate.gradients import chosen_concepts

OUT = Path(__file__).with_suffix(".json")
app = typer.Typer(add_completion=False, help=__doc__)
SAVE = 200  # steps between two saved states


def batches(data: TrainingSet, count: int, rng: np.random.Generator) -> Iterator[dict]:
    """Endless batches: image_B3HW in [0, 1], target_BK."""
    index = {concept: k for k, concept in enumerate(data.concepts)}
    while True:
        samples = [data.sample(rng) for _ in range(count)]
        image = torch.from_numpy(np.stack([s.rgb for s in samples])).permute(0, 3, 1, 2) / 255
        target = torch.zeros(count, len(index))
        for row, sample in zip(target, samples):
            for concept in sample.concepts:
                row[index[concept]] = 1 / len(sample.concepts)
        yield {"image": image, "target": target}


def train(name: str, out: Path, config: GuidingConfig, batch: int) -> None:
    """Trains, saves as it goes, and writes the folder of the averaged weights."""
    data = TrainingSet(common.DATA, size=128, mix=MIX)
    parts, state = load_parts(name), out / "state.pt"
    folding.skip(parts.model.visual)  # a third less time
    fit = guiding_fit(parts, classes=data.concepts, config=config)
    if state.exists():
        kept = torch.load(state, weights_only=True)
        fit.load_state_dict(kept["fit"])
        fit.loss.load_state_dict(kept["loss"])

    def save() -> None:
        kept = {"fit": fit.state_dict(), "loss": fit.loss.state_dict()}
        torch.save(kept, state.with_suffix(".new"))
        state.with_suffix(".new").replace(state)

    for step in fit.run(batches(data, batch, np.random.default_rng([0, fit.index]))):
        if step.index % 10 == 0:
            told = "  ".join(f"{k} {v:.3f}" for k, v in step.parts.items())
            print(f"step {step.index}  {step.minutes:.1f} min  {told}", flush=True)
        if step.index % SAVE == 0:
            save()
    save()
    plain = load_parts(name)
    plain.model.load_state_dict(fit.average.model.state_dict())
    plain.save(out)


def hand_of(clip: Clip, concepts: list[str], steps: int) -> Hand:
    """Return the clip's best hand by the judge, for so many steps."""
    found = choose(clip, load_clip("mini-judge"), concepts, Hand(steps=max(1, steps // 2)))
    return replace(found, steps=steps)


@app.command("train")
def train_and_save(
    clip: str = str(CACHE / "guide-plain"),
    out: Path = Path("my-guide"),
    minutes: float = 240,
    steps: int = 0,
    method: str = "tecoa",
    norm: str = "l2",
    attack_steps: int = 1,
    keep: float = 1.0,
    lr: float = 2e-4,
    batch: int = 64,
) -> None:
    """Train, for `minutes` of the processor or `steps`, on from what is in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    config = GuidingConfig(
        minutes=None if steps else minutes,
        steps=steps or None,
        method=method,
        norm=norm,
        attack_steps=attack_steps,
        keep=keep,
        lr=lr,
    )
    train(clip, out, config, batch)


@app.command()
def measure(
    clips: list[str],
    concepts: int = 100,
    drawn: int = 200,
    search: bool = True,
    keep: bool = True,
) -> None:
    """What each of CLIPS draws, by the referee: `concepts` in `drawn` steps, by its best hand or
    the first; and how it names the held-out drawings. Kept in guiding.json."""
    drawings = Drawings()
    measured, searched = chosen_concepts(drawings.things())
    referee = load_clip(CACHE / "referee")
    pictures = [drawings.picture(d.index) for d in drawings.held_out]
    labels = drawings.targets(drawings.held_out).tolist()
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in clips:
        clip = load_clip(name)
        hand = hand_of(clip, searched, drawn) if search else Hand(steps=drawn)
        found = guide_figure(clip, referee, measured[:concepts], among=drawings.concepts, hand=hand)
        found.sheet().save(CACHE / f"drawn-{Path(name).name}.png")
        known[Path(name).name] = facts = {
            "concepts": len(found.concepts),
            "referee's top-5": round(found.share, 4),
            "held-out drawings, top-1": round(
                clean_top1(clip, pictures, labels, drawings.concepts), 4
            ),
            "hand": str(hand),
            "fingerprint": clip.fingerprint[:12],
        }
        print(name, json.dumps(facts), flush=True)
        if keep:
            OUT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    app()
