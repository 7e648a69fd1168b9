"""Measure fine-tuning against its targets. The figures are in finetune.json.

    python -m benchmarks.finetune style      # mini on half of a style that it was not trained on
    python -m benchmarks.finetune few        # 8 shots of 50 concepts, icons of one colour
    python -m benchmarks.finetune cache      # big batches: memory and time
    python -m benchmarks.finetune data       # the share of the time that is the model's
    python -m benchmarks.finetune peer       # compared with the training loop of open_clip

`style` and `few` need the data that `python -m training.data build` downloads. Legend: B images, D
width.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image

from clipguide.clip import Parts, load_parts
from clipguide.finetune.batches import Batches
from clipguide.finetune.config import FinetuneConfig
from clipguide.finetune.contrastive import Contrastive
from clipguide.finetune.data import Dataset, halves, read
from clipguide.finetune.exam import Exam
from clipguide.finetune.fit import Fit, FitConfig
from clipguide.finetune.job import CONCEPTS, HELD_OUT
from clipguide.finetune.outcome import select
from clipguide.finetune.run import Finetune
from clipguide.zero_shot.few_shot import fit_probe, fit_tip

OUT = Path(__file__).with_suffix(".json")
app = typer.Typer(add_completion=False, help=__doc__)


def keep(key: str, facts: dict) -> None:
    """Print the figures, and keep them."""
    print(json.dumps(facts, indent=1), flush=True)
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps({**known, key: facts}, indent=1, sort_keys=True) + "\n")


def part(data: Dataset, wanted: list, classes: list[str] | None = None) -> Dataset:
    """Return some of the examples, with other classes if they are given."""
    return Dataset(wanted, data.classes if classes is None else classes, data.report)


# ------------------------------------------------------------------ a style


def drawings_of(style: str, folder: Path) -> Dataset:
    """Return the drawings of a held-out style, each with its concept as caption."""
    from training.evaluate.drawings import Drawings

    drawings = Drawings()
    lines = []
    for drawing in drawings.style(style):
        path = folder / f"{drawing.index}.png"
        drawings.picture(drawing.index).save(path)
        lines.append(json.dumps({"image": str(path), "caption": drawing.concept}))
    (folder / "drawings.jsonl").write_text("\n".join(lines))
    return read(folder / "drawings.jsonl")


@app.command()
def style(
    name: str = "openmoji",
    clip: str = "mini",
    method: str = "full",
    lr: float | None = None,
    epochs: float = 20,
    seed: int = 0,
    save: bool = True,
) -> None:
    """Train on half of the concepts of a style, and test on the other half, among all 1,740 names.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = drawings_of(name, Path(folder))
        concepts = sorted({e.caption for e in data.examples})
        random.Random(seed).shuffle(concepts)
        half = len(concepts) // 2
        sides = concepts[: half * 8 // 10], concepts[half * 8 // 10 : half], concepts[half:]
        train, aside, test = (
            part(data, [e for e in data.examples if e.caption in set(side)]) for side in sides
        )
        parts = load_parts(clip)
        config = FinetuneConfig(
            method=method, lr=lr, epochs=epochs, seed=seed, templates="plain", patience=99
        )
        fit = Finetune(parts, train, aside, config)
        labels = CONCEPTS.read_text().splitlines()
        exam = _among(parts, test, labels)
        sides = halves(read(HELD_OUT), seed=seed)
        retention, weighed = (Exam(parts, side, labels=labels) for side in sides)
        began = time.monotonic()
        for step in fit.run():
            if step.measured is not None:
                print(f"{step.step} {step.loss:.3f} aside {step.measured:.3f}", flush=True)
        minutes = (time.monotonic() - began) / 60
        outcome = select(fit, exam, retention, weighed)
    facts = {
        "settings": f"{clip} {method} lr {lr} epochs {epochs} seed {seed}",
        "pictures": [len(train), len(aside), len(test)],
        "minutes": round(minutes, 1),
        "alpha": outcome.chosen.alpha,
        "curve": [(p.alpha, round(p.target, 4), round(p.retention, 4)) for p in outcome.places],
        **{what: [round(was, 4), round(now, 4)] for what, was, now in outcome.rows()},
    }
    if save:
        keep(f"style {name}", facts)
    else:
        print(json.dumps(facts, indent=1))


def _among(parts: Parts, data: Dataset, labels: list[str]) -> Exam:
    """Return an exam of captions, with all labels as choices."""
    number = {label: n for n, label in enumerate(labels)}
    examples = [replace(e, label=number[e.caption]) for e in data.examples]
    return Exam(parts, part(data, examples, labels))


# ------------------------------------------------------------------ few shots

ENDINGS = "fill|filled|solid|bold|line|outline|regular|thin|light|duotone|twotone|rounded|sharp"
CONCEPTS_FEW, SHOTS, TESTED = 50, 8, 8


def icons(folder: Path, count: int, seed: int = 0) -> Dataset:
    """Return black icons on white that mini was not trained on: for each concept, one from each of
    many sets."""
    from training import common
    from training.data.render import LeftOut, fit, load

    source = common.CACHE / "sources" / "npm" / "node_modules" / "@iconify" / "json"
    known = {line for line in CONCEPTS.read_text().splitlines() if line.isalpha()}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    sets = json.loads((source / "collections.json").read_text())
    for name, about in sets.items():
        strange = any(word in about.get("category", "") for word in ("Logos", "Flags", "Emoji"))
        if about.get("palette") or about.get("hidden") or strange or about["total"] < 200:
            continue
        data = json.loads((source / "json" / f"{name}.json").read_text())
        for icon in data["icons"]:
            base = re.sub(rf"-({ENDINGS}|alt|o|icon|\d+)\b", "", icon)
            if base in known and name not in found[base]:
                found[base][name] = svg(data, icon)
    concepts = sorted(c for c, icons in found.items() if len(icons) >= SHOTS + TESTED + 4)
    random.Random(seed).shuffle(concepts)
    for concept in concepts[:count]:
        (folder / concept).mkdir()
        for name, text in sorted(found[concept].items())[: 3 * (SHOTS + TESTED)]:
            try:
                rgba = fit(load(text, False))
            except LeftOut:
                continue
            white = Image.new("RGBA", rgba.size, "white")
            picture = Image.alpha_composite(white, rgba).convert("RGB").resize((128, 128))
            picture.save(folder / concept / f"{name}.png")
    return read(folder)


def svg(data: dict, icon: str) -> str:
    """Return the SVG of an icon of iconify, in black."""
    about = data["icons"][icon]
    width, height = (about.get(k, data.get(k, 16)) for k in ("width", "height"))
    left, top = about.get("left", 0), about.get("top", 0)
    body = about["body"].replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def shots(data: Dataset, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Return (6 images to train on, 2 to select by, 8 to test on) of each class. No two are
    near-copies."""
    rng = random.Random(seed)
    sides: tuple[list, list, list] = [], [], []
    for label in range(len(data.classes)):
        first: dict[int, object] = {}
        for example in data.examples:
            if example.label == label:
                first.setdefault(example.group, example)
        mine = sorted(first.values(), key=lambda e: e.path)
        rng.shuffle(mine)
        for side, (low, high) in zip(sides, ((0, 6), (6, SHOTS), (SHOTS, SHOTS + TESTED))):
            side.extend(mine[low:high])
    return tuple(part(data, side) for side in sides)


@app.command()
def few(clip: str = "mini", seeds: int = 3, epochs: float = 30, save: bool = True) -> None:
    """Compare the best of head, LoRA and full, selected on 2 of 8 shots, with Tip-Adapter and a
    probe on 8."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = icons(Path(folder), CONCEPTS_FEW)
        print(data.report)
        for seed in range(seeds):
            train, aside, test = shots(data, seed)
            row = {"test pictures": len(test)}
            row.update(others(load_parts(clip), train, aside, test))
            chosen = (-1.0, "")
            for method in ("head", "lora", "full"):
                parts = load_parts(clip)
                config = FinetuneConfig(
                    method=method, epochs=epochs, seed=seed, templates="plain", patience=8
                )
                fit = Finetune(parts, train, aside, config)
                list(fit.run())
                row[method] = round(Exam(parts, test)(parts).main, 4)
                row[f"{method}, aside"] = round(fit.best.worth[0], 4)
                chosen = max(chosen, (*fit.best.worth, method))
            row["chosen"] = chosen[-1]
            row["ours"] = row[chosen[-1]]
            print(row, flush=True)
            rows.append(row)
        names = ("zero-shot", "tip-adapter", "probe", "probe from texts", "ours")
        mean = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in names}
    facts = {"mean": mean, "seeds": rows}
    keep("few", facts) if save else print(json.dumps(facts, indent=1))


def others(parts: Parts, train: Dataset, aside: Dataset, test: Dataset) -> dict[str, float]:
    """Return the results of zero-shot, Tip-Adapter and linear probes on the same features, with all
    8 shots."""
    clip = parts.clip()
    both = part(train, [*train.examples, *aside.examples])
    seen, exam = Exam(parts, both), Exam(parts, test)
    shot_SD, target_S = seen.vectors(clip), seen.target_B
    image_BD, text_ND = exam.vectors(clip), clip.encode_text(train.classes)
    tip = fit_tip(shot_SD, target_S, text_ND, logit_scale=clip.logit_scale)
    found = {
        "zero-shot": image_BD @ text_ND.T,
        "tip-adapter": tip.logits(image_BD),
        "probe": fit_probe(shot_SD, target_S).logits(image_BD),
        "probe from texts": fit_probe(shot_SD, target_S, text_ND=text_ND).logits(image_BD),
    }
    return {
        name: round((logit_BN.argmax(1) == exam.target_B).double().mean().item(), 4)
        for name, logit_BN in found.items()
    }


# ------------------------------------------------------------------ big batches, the data path

PLAIN = dict(templates="plain", ema=0.0, patience=99)


def of_drawings(config: FinetuneConfig, clip: str = "mini") -> Finetune:
    """Return a fine-tuning on the held-out drawings of the package."""
    parts, data = load_parts(clip), read(HELD_OUT)
    aside = part(data, data.examples[:8])
    return Finetune(parts, data, aside, config)


@app.command()
def one(batch: int, chunk: int, steps: int = 2) -> None:
    """Take steps of one size in a separate process. Return the seconds of each, and the peak
    memory."""
    fit = of_drawings(FinetuneConfig(batch=batch, chunk=chunk, steps=steps, **PLAIN))
    fit.epoch = steps + 1  # no exam between them
    marks = [time.monotonic()]
    for _ in fit.run():
        marks.append(time.monotonic())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = [round(b - a, 2) for a, b in zip(marks, marks[1:])]
    print(json.dumps({"seconds": seconds, "peak MB": round(peak)}))


def alone(*arguments: object) -> dict:
    """Return what `one` measures in a new process."""
    command = [sys.executable, "-m", "benchmarks.finetune", "one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@app.command()
def cache(large: int = 4096, save: bool = True) -> None:
    """Measure GradCache: a batch of 256 at once and in chunks of 16, in turn; then the large batch.
    """
    pairs = [(alone(256, 256), alone(256, 16)) for _ in range(2)]
    whole, chunked = (min(p[k]["seconds"][-1] for p in pairs) for k in (0, 1))
    big = alone(large, 16, "--steps", 1)
    facts = {
        "256 at once": pairs[-1][0],
        "256 in 16s": pairs[-1][1],
        f"{large} in 16s": big,
        "time": round(chunked / whole, 3),
        "memory": round(big["peak MB"] / pairs[-1][1]["peak MB"], 3),
    }
    keep("cache", facts) if save else print(json.dumps(facts, indent=1))


@app.command()
def data(steps: int = 25, save: bool = True) -> None:
    """Measure the share of the time that is not spent waiting for images: mini, batches of 64."""
    fit = of_drawings(FinetuneConfig(steps=steps, **PLAIN))
    fit.epoch = steps + 1
    *_, step = fit.run()  # the first epoch, which decodes, is a part of it
    facts = {"steps": steps, "in the model": round(1 - step.waited, 4)}
    keep("data", facts) if save else print(json.dumps(facts, indent=1))


# ------------------------------------------------------------------ open_clip's own training


@app.command()
def peer(model: str = "ViT-S-32-alt", steps: int = 100, batch: int = 16, save: bool = True) -> None:
    """Train on the same batches with train_one_epoch of open_clip_train and with ours, in float32.
    """
    source = read(HELD_OUT)
    examples = [replace(e, caption=f"{e.caption} {k}") for k, e in enumerate(source.examples)]
    losses, seconds = {}, {}
    torch.manual_seed(0)
    state = {k: v.clone() for k, v in fresh(model).model.state_dict().items()}
    parts = fresh(model)
    batches = Batches(part(source, examples, []), parts, batch=batch, augment=False).run(0, steps)
    dumped = [(b["image"].contiguous(), b["caption"]) for b in batches]
    for name, train in (("open_clip", theirs), ("clipguide", ours)):
        parts = fresh(model)
        parts.model.load_state_dict(state)
        began = time.monotonic()
        losses[name] = train(parts, dumped)
        seconds[name] = time.monotonic() - began
    apart = max(abs(a - b) for a, b in zip(losses["open_clip"], losses["clipguide"]))
    facts = {
        "model": model,
        "steps": steps,
        "largest difference of a loss": apart,
        "losses": [[round(losses[n][k], 4) for n in losses] for k in (0, steps // 2, steps - 1)],
        "their time / ours": round(seconds["open_clip"] / seconds["clipguide"], 3),
    }
    keep("peer", facts) if save else print(json.dumps(facts, indent=1))


RATE, WARMUP, DECAY, EPS = 5e-5, 10, 0.2, 1e-6


def fresh(model: str) -> Parts:
    """Return an open_clip model with random weights."""
    import open_clip

    made, _, transform = open_clip.create_model_and_transforms(model, pretrained=None)
    return Parts(made, transform, open_clip.get_tokenizer(model), model)


def ours(parts: Parts, dumped: list) -> list[float]:
    """Train with Fit and Contrastive."""
    config = FinetuneConfig(batch=len(dumped[0][1]))
    parts.model.eval().requires_grad_(True)
    loss = Contrastive(parts, config, chunk=config.batch, state=None)
    rates = FitConfig(
        steps=len(dumped),
        lr=RATE,
        warmup=WARMUP,
        weight_decay=DECAY,
        eps=EPS,
        ema=0,
        clip_norm=None,
    )
    fit = Fit(parts.model, loss, rates)
    batches = ({"chunks": [{"image": image}], "captions": texts} for image, texts in dumped)
    return [step.loss for step in fit.run(batches)]


def theirs(parts: Parts, dumped: list) -> list[float]:
    """Train with train_one_epoch, with the optimiser and schedule of its main."""
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    model, seen = parts.model, []
    model.output_dict = True
    loss = ClipLoss()

    def told(**given: object) -> dict:
        found = loss(**given)
        seen.append(found["contrastive_loss"].item())
        return found

    named = list(model.named_parameters())
    plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
    rest = [p for n, p in named if not any(p is q for q in plain)]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": DECAY}],
        lr=RATE,
        betas=(0.9, 0.98),
        eps=EPS,
    )
    pairs = [(parts.normalise(image), parts.tokenizer(texts)) for image, texts in dumped]
    loader = _Loader(pairs)
    args = argparse.Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        log_every_n_steps=10**9,
        world_size=1,
        batch_size=len(dumped[0][1]),
        wandb=False,
        save_logs=False,
        log_local=False,
    )
    schedule = cosine_lr(optimizer, RATE, WARMUP, len(dumped))
    data = {"train": argparse.Namespace(dataloader=loader, set_epoch=lambda epoch: None)}
    train_one_epoch(model, data, told, 0, optimizer, None, schedule, None, args)
    return seen


class _Loader(list):
    """Batches with the counts that train_one_epoch reads."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return len(self) * len(self[0][0])


if __name__ == "__main__":
    app()
