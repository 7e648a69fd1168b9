"""Write the report of a fine-tuning: its card, its curve, its confusion matrices, the changed
images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .. import __version__
from ..images import contact_sheet
from ..prompts import shorten
from ..zero_shot import confusion
from ..zero_shot.confusion import MOST, draw
from .config import FinetuneConfig
from .outcome import Outcome, changed
from .run import Finetune

SHOWN = 24  # images per kind on a sheet
TILE = 96


def write(folder: Path, outcome: Outcome, fit: Finetune, *, data: str, kept: str) -> None:
    """Write README.md, finetune.json and PNGs into `folder`, next to the weights. For lora, which
    is merged into the weights, also write the adapter."""
    pictures = {"curve.png": curve_picture(outcome)} if len(outcome.places) > 2 else {}
    if fit.train.classes and len(fit.train.classes) <= MOST:
        for name, results in (("before", outcome.before), ("after", outcome.after)):
            counts = confusion(
                outcome.target.target_B,
                results[0].found_B,
                rows=len(fit.train.classes),
                columns=len(fit.train.classes),
            )
            pictures[f"confusion-{name}.png"] = draw(counts, fit.train.classes, fit.train.classes)
    for name, places in zip(("gained", "lost"), changed(outcome)):
        if places:
            pictures[f"{name}.png"] = changed_picture(outcome, places[:SHOWN])
    if fit.adapter is not None:
        fit.adapter.save(folder / "adapter", share=outcome.chosen.alpha)
    for name, picture in pictures.items():
        picture.save(folder / name)
    (folder / "finetune.json").write_text(json.dumps(_facts(outcome, fit, data), indent=2) + "\n")
    (folder / "README.md").write_text(_card(outcome, fit, data, kept, sorted(pictures)))


def table(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Return the rows of the table before and after, in words."""
    return [(what, _figure(what, was), _figure(what, now)) for what, was, now in outcome.rows()]


def _figure(what: str, value: float) -> str:
    return f"{value:.3f}" if what.endswith("cross-entropy") else f"{100 * value:.1f} %"


def _facts(outcome: Outcome, fit: Finetune, data: str) -> dict:
    return {
        "clipguide": __version__,
        "data": data,
        "base": fit.parts.name,
        "templates": list(fit.templates),
        "pictures": {"train": len(fit.train), "aside": len(fit.exam), "test": len(outcome.target)},
        "config": asdict(fit.config),
        "curve": [asdict(place) for place in outcome.places],
        "chosen": asdict(outcome.chosen),
        "epochs": fit.best.history,
        "figures": {what: [was, now] for what, was, now in outcome.rows()},
    }


def _card(outcome: Outcome, fit: Finetune, data: str, kept: str, pictures: Sequence[str]) -> str:
    config = fit.config
    aside = f"{len(fit.exam)} set aside"
    if outcome.target is not fit.exam:
        aside += f" to choose by, {len(outcome.target)} to test on"
    kept_of = "There was no retention set."
    if outcome.retention:
        kept_of = (
            f"Of the way from the old weights to the new (WiSE-FT), "
            f"{round(100 * outcome.chosen.alpha)} % was kept. Retention: {kept}."
        )
    lines = [
        f"# {shorten(fit.parts.name)}, fine-tuned",
        "",
        f"Fine-tuned by clipguide on {data}: {len(fit.train)} images, {aside}.",
        f"Method {config.method}: {_how(config)}. {kept_of}",
        "",
        "| figure | before | after |",
        "|---|---|---|",
        *(f"| {what} | {was} | {now} |" for what, was, now in table(outcome)),
        "",
        _honest(outcome, fit),
        "",
        *(f"![{name}]({name})\n" for name in pictures),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _honest(outcome: Outcome, fit: Finetune) -> str:
    if outcome.target is not fit.exam:
        return (
            "The test images share no near-duplicate with those trained on, and nothing was "
            "chosen by them."
        )
    return (
        "There were too few images to set some aside twice: the model was chosen by the very "
        "images that it is tested on, so that the figures flatter it."
    )


def _how(config: FinetuneConfig) -> str:
    if config.method == "head":
        return "a linear map of the image embedding"
    rank = f" of rank {config.rank}" if config.method == "lora" else ""
    return f"{config.loss} loss{rank}, batches of {config.batch}, seed {config.seed}"


def changed_picture(outcome: Outcome, places: Sequence[int]) -> Image.Image:
    """Return a sheet of test images, each with its old and its new label."""
    exam = outcome.target
    names = exam.labels or exam.texts
    was_B, now_B = outcome.before[0].found_B, outcome.after[0].found_B
    labels = [f"{names[was_B[b]]} > {names[now_B[b]]}" for b in places]
    tiles = []
    for b in places:
        tile = exam.examples[b].picture()
        tile.thumbnail((TILE * 2, TILE * 2))
        tiles.append(tile)
    return contact_sheet(tiles, labels=labels, columns=6)


def curve_picture(outcome: Outcome, size: int = 480) -> Image.Image:
    """Return the plot of target accuracy against retention, from the old weights to the new ones.
    """
    places, edge = outcome.places, 60
    sheet = Image.new("RGB", (size, size), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    spans = []
    for name in ("retention", "target"):
        values = [getattr(place, name) for place in places]
        low, high = min(values), max(values)
        pad = max((high - low) * 0.12, 0.005)
        spans.append((max(0.0, low - pad), min(1.0, high + pad)))

    def at(place) -> tuple[float, float]:
        shares = [
            (getattr(place, name) - low) / (high - low)
            for name, (low, high) in zip(("retention", "target"), spans)
        ]
        reach = size - 2 * edge
        return edge + shares[0] * reach, size - edge - shares[1] * reach

    pen.rectangle((edge, edge, size - edge, size - edge), outline="gray")
    pen.line([at(place) for place in places], fill=(18, 76, 142), width=2)
    written: list[tuple[float, float]] = []
    for place in places:
        x, y = at(place)
        mark = (176, 42, 32) if place == outcome.chosen else (18, 76, 142)
        r = 6 if place == outcome.chosen else 4
        pen.ellipse((x - r, y - r, x + r, y + r), fill=mark)
        if all(abs(x - a) > 16 or abs(y - b) > 12 for a, b in written):
            pen.text((x + 8, y - 8), f"{place.alpha:g}", fill="black", font=font)
            written.append((x, y))
    for k in range(3):
        (left, right), (low, high) = spans
        x, y = edge + k / 2 * (size - 2 * edge), size - edge - k / 2 * (size - 2 * edge)
        value = f"{100 * (left + k / 2 * (right - left)):.1f} %"
        pen.text((x, size - edge + 6), value, fill="black", font=font, anchor="ma")
        value = f"{100 * (low + k / 2 * (high - low)):.1f} %"
        pen.text((edge - 6, y), value, fill="black", font=font, anchor="rm")
    pen.text((size / 2, size - 8), "retention", fill="black", font=font, anchor="md")
    pen.text((edge, edge - 10), "target (images set aside)", fill="black", font=font, anchor="ld")
    title = "numbers: share of the new weights; red: chosen"
    pen.text((size / 2, 12), title, fill="black", font=font, anchor="ma")
    return sheet
