"""Measure what common mistakes in preprocessing change: cosine similarities, and the best names.

    python -m benchmarks.mistakes                       # on samples/pictures
    python -m benchmarks.mistakes --photos FOLDER       # "tench.jpg" shows a tench

The table goes to the terminal, to benchmarks/peers.json and to docs/peers.md.

Shapes: B images, K names, D of an embedding; 3 channels, H rows, W columns.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image, ImageDraw

from benchmarks.peers import (
    BATCH,
    LONG,
    PICTURES,
    Data,
    accuracies,
    folder_data,
    on_sheet,
    publish,
    versions,
)

TURNED = 6  # the EXIF orientation of a picture to be turned clockwise
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


@dataclass(frozen=True)
class Mistake:
    """Two ways to encode images or names: the correct one and the mistake."""

    name: str
    right: Callable[[Sequence], torch.Tensor]
    wrong: Callable[[Sequence], torch.Tensor]
    of_text: bool = False
    drawings_only: bool = False


def mistakes_of(clip, others: dict[str, object]) -> list[Mistake]:
    """Return all mistakes. `others` are the same CLIP in other dtypes, by their names."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    side = clip.image_size

    def encode(change: Callable[[Image.Image], Image.Image]) -> Callable:
        return lambda pictures: clip.encode_pictures([change(p) for p in pictures])

    def tensors(**how) -> Callable:
        def resized(picture: Image.Image) -> torch.Tensor:
            short = min(picture.size)
            size = [int(side * one / short) for one in (picture.height, picture.width)]
            image_13HW = F.interpolate(_tensor(picture), size, **how).clamp(0, 1)
            return CenterCrop(side)(image_13HW)

        return lambda pictures: clip.encode_image(torch.cat([resized(p) for p in pictures]))

    def filtered(filter_: InterpolationMode) -> Callable:
        return encode(lambda picture: CenterCrop(side)(Resize(side, filter_)(picture)))

    def said(template: str, long: str = "cut") -> Callable:
        return lambda names: clip.encode_text([template.format(n) for n in names], long=long)

    right = encode(lambda p: p)
    wrong = {
        "none: a tensor, bicubic, antialiased": tensors(mode="bicubic", antialias=True),
        "a tensor, bicubic, not antialiased": tensors(mode="bicubic"),
        "a tensor, bilinear, not antialiased": tensors(mode="bilinear"),
        "Pillow's bilinear": filtered(InterpolationMode.BILINEAR),
        "Pillow's nearest": filtered(InterpolationMode.NEAREST),
    }
    found = [Mistake(name, right, way) for name, way in wrong.items()]
    squash = encode(lambda p: _oblong(p).resize((side, side), Image.Resampling.BICUBIC))
    found.append(Mistake("squashed instead of cropped", encode(_oblong), squash))
    found += [Mistake(name, right, other.encode_pictures) for name, other in others.items()]
    found.append(
        Mistake(
            "transparency dropped, black instead of white",
            encode(lambda p: _loaded(_cut_out(p))),
            encode(lambda p: _cut_out(p).convert("RGB")),
            drawings_only=True,
        )
    )
    found.append(
        Mistake(
            "EXIF rotation ignored",
            encode(lambda p: _loaded(_turned(p))),
            encode(lambda p: _turned(p).convert("RGB")),
        )
    )
    long = Mistake("a long text cut before its end", said(LONG, "chunk"), said(LONG), of_text=True)
    return [*found, long]


def measure(
    mistake: Mistake, clip, data: Data, seen: dict[Callable, torch.Tensor]
) -> dict[str, float]:
    """Return |change of the cosine| of each image with its own name, the mean and the largest; how
    often another name becomes the best; and how often the correct one is the best, before and
    after. `seen` keeps the embeddings of the correct ways."""
    items = data.names if mistake.of_text else data.pictures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the long texts
        if mistake.right not in seen:
            seen[mistake.right] = _in_batches(mistake.right, items)
        right_D, wrong_D = seen[mistake.right], _in_batches(mistake.wrong, items)
    if mistake.of_text:
        image_BD = clip.encode_pictures(data.pictures)
        right_BK, wrong_BK = image_BD @ right_D.T, image_BD @ wrong_D.T
    else:
        name_KD = clip.encode_text(data.names)
        right_BK, wrong_BK = right_D @ name_KD.T, wrong_D @ name_KD.T
    target_B = torch.tensor(data.target)
    change_B = (right_BK - wrong_BK).gather(1, target_B[:, None]).abs()
    return {
        "mean": change_B.mean().item(),
        "max": change_B.max().item(),
        "renamed": (right_BK.argmax(1) != wrong_BK.argmax(1)).float().mean().item(),
        "top-1 before": accuracies(right_BK, target_B)["acc1"],
        "top-1 after": accuracies(wrong_BK, target_B)["acc1"],
    }


@app.command()
def mistakes(
    photos: Annotated[Path | None, typer.Option(help="A folder of photographs.")] = None,
) -> None:
    """Measure what common mistakes change, by mini: cosine similarities, and the best names."""
    from clipguide import load_clip

    clip = load_clip("mini")
    others = {dtype: load_clip("mini", dtype=dtype) for dtype in ("float16", "bfloat16")}
    sets = [folder_data(PICTURES, "samples/pictures")]
    sets += [folder_data(photos, "photographs")] if photos else []
    found, scale = [], []
    for data in sets:
        cosine_BK = clip.encode_pictures(data.pictures) @ clip.encode_text(data.names).T
        own_B = cosine_BK.gather(1, torch.tensor(data.target)[:, None])
        scale.append({"data": data.name, "pictures": len(data.pictures), "names": len(data.names)})
        scale[-1] |= {"own": own_B.mean().item(), "all": cosine_BK.mean().item()}
        seen: dict[Callable, torch.Tensor] = {}
        for mistake in mistakes_of(clip, others):
            if not (mistake.drawings_only and data.name == "photographs"):
                row = {"mistake": mistake.name, "data": data.name}
                found.append(row | measure(mistake, clip, data, seen))
    facts = {"versions": versions("torch", "torchvision", "pillow"), "scale": scale, "rows": found}
    publish("mistakes", facts, table_of_mistakes)


def table_of_mistakes(found: dict) -> list[str]:
    """Return the lines of a table in Markdown, one per mistake, with the columns of each set of
    images."""
    sets = [scale["data"] for scale in found["scale"]]
    columns = ("mean", "max", "other name", "top-1")
    heads = [f"{name}: {what}" for name in sets for what in columns]
    lines = [f"| mistake | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rows = {(row["mistake"], row["data"]): row for row in found["rows"]}
    for name in dict.fromkeys(row["mistake"] for row in found["rows"]):
        cells = []
        for data in sets:
            if row := rows.get((name, data)):
                cells += [f"{row['mean']:.4f}", f"{row['max']:.4f}", f"{row['renamed']:.1%}"]
                cells.append(f"{row['top-1 before']:.1%} → {row['top-1 after']:.1%}")
            else:
                cells += ["–"] * 4
        shown = name.replace("none: ", "baseline: ")  # it is not a mistake
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return lines


def _in_batches(encode: Callable, items: Sequence) -> torch.Tensor:
    return torch.cat([encode(items[i : i + BATCH]) for i in range(0, len(items), BATCH)])


def _tensor(picture: Image.Image) -> torch.Tensor:
    from clipguide.images import to_tensor

    return to_tensor([picture])


def _loaded(picture: Image.Image) -> Image.Image:
    from clipguide.images import load

    return load(picture)


def _oblong(picture: Image.Image) -> Image.Image:
    """Return an image that is not square. A square one is placed on a sheet."""
    return on_sheet(picture) if picture.width == picture.height else picture


def _cut_out(picture: Image.Image) -> Image.Image:
    """Return RGBA: the white around a drawing is transparent, and black below, as many programs
    write it."""
    filled = picture.copy()
    corners = [(x, y) for x in (0, picture.width - 1) for y in (0, picture.height - 1)]
    for corner in corners:
        ImageDraw.floodfill(filled, corner, (255, 0, 255), thresh=8)
    clear_HW = (np.asarray(filled) == (255, 0, 255)).all(-1)
    rgba_HW4 = np.dstack([np.asarray(picture), np.full(clear_HW.shape, 255, np.uint8)])
    rgba_HW4[clear_HW] = 0
    return Image.fromarray(rgba_HW4)


def _turned(picture: Image.Image) -> Image.Image:
    """Return the file of a camera that was held sideways: a PNG with rows and columns exchanged,
    and the EXIF orientation that rotates it upright."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = TURNED
    picture.transpose(Image.Transpose.ROTATE_90).save(stream, "png", exif=exif)
    return Image.open(stream)


if __name__ == "__main__":
    app()
