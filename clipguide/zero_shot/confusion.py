"""Count how often images of one class get the label of another, as figures and as an image.

Shapes: B images, N classes, M columns: the classes, and perhaps "none of these" after them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import UsageError
from ..prompts import shorten

MOST = 200  # largest number of classes in an image
TEXT = 40  # up to this number of classes, cells have numbers
PALE, DARK, WRONG = (255, 255, 255), (18, 76, 142), (176, 42, 32)


def confusion(
    target_B: torch.Tensor, found_B: torch.Tensor, *, rows: int, columns: int
) -> torch.Tensor:
    """Return count_NM: how many images of each class (row) got each label (column)."""
    target_B, found_B = torch.as_tensor(target_B), torch.as_tensor(found_B)
    flat = (target_B * columns + found_B).bincount(minlength=rows * columns)
    return flat.reshape(rows, columns)


def figures(
    score_BN: torch.Tensor, target_B: torch.Tensor, *, none_B: torch.Tensor | None = None
) -> dict[str, float]:
    """Return top-1, top-5 (if there are more than five classes) and the mean recall of the classes,
    in [0, 1].

    Ties and scores that are not numbers count as wrong. So do images in `none_B`, which were
    rejected. Classes without an image have no recall.
    """
    target_B = torch.as_tensor(target_B)
    if not len(target_B):
        raise UsageError("There is no image to count.")
    right_B1 = score_BN.gather(1, target_B[:, None])
    rank_B = (~(score_BN < right_B1)).sum(1) - 1
    kept_B = torch.ones_like(target_B).bool() if none_B is None else ~none_B
    hit_B = ((rank_B == 0) & kept_B).double()
    found = {"top-1": hit_B.mean().item()}
    if score_BN.shape[1] > 5:
        found["top-5"] = ((rank_B < 5) & kept_B).double().mean().item()
    recalls = [hit_B[target_B == target].mean() for target in target_B.unique()]
    return {**found, "mean recall": torch.stack(recalls).mean().item()}


def draw(count_NM: torch.Tensor, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Return the matrix as an image: a row for each class, shaded by its share of the row; blue
    where the label is right, red where it is wrong; with the counts if they fit. Raise UsageError
    for more than 200 classes."""
    if max(len(rows), len(columns)) > MOST:
        raise UsageError(f"An image of confusions holds {MOST} classes, not {len(columns)}.")
    cell = max(6, min(36, 1200 // len(columns)))
    font = ImageFont.load_default(size=max(6, min(13, cell - 1)))
    row_names, column_names = ([shorten(n, 28) for n in names] for names in (rows, columns))
    left, top = (
        int(max(font.getlength(n) for n in names)) + 10 for names in (row_names, column_names)
    )
    size = (left + cell * len(columns) + 8, top + cell * len(rows) + 8)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for m, name in enumerate(column_names):
        label = _turned(name, font)
        x = left + m * cell + (cell - label.width) // 2
        sheet.paste(label, (x, top - 4 - label.height))
    for n, name in enumerate(row_names):
        y = top + n * cell
        pen.text((left - 5, y + cell / 2), name, fill="black", font=font, anchor="rm")
        total = max(int(count_NM[n].sum()), 1)
        for m, count in enumerate(count_NM[n].tolist()):
            box = (left + m * cell, y, left + (m + 1) * cell, y + cell)
            share = count / total
            fill = _between(PALE, DARK if rows[n] == columns[m] else WRONG, share)
            pen.rectangle(box, fill=fill, outline=(225, 225, 225))
            if count and len(columns) <= TEXT:
                ink = "white" if share > 0.5 else "black"
                middle = (box[0] + cell / 2, y + cell / 2)
                pen.text(middle, str(count), fill=ink, font=font, anchor="mm")
    return sheet


def _turned(text: str, font: ImageFont.ImageFont) -> Image.Image:
    """Return the text in black on white, turned to read upwards."""
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (max(1, int(right)) + 2, max(1, int(bottom)) + 2), "white")
    ImageDraw.Draw(picture).text((0, 0), text, fill="black", font=font)
    return picture.rotate(90, expand=True)


def _between(low: tuple, high: tuple, share: float) -> tuple[int, int, int]:
    return tuple(round(a + (b - a) * share) for a, b in zip(low, high))
