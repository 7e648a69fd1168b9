"""Pictures of three classes that a tiny CLIP can learn to tell apart: discs of three colours."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

COLOURS = {"a red thing": "#d02020", "a green thing": "#20a040", "a blue thing": "#2040d0"}


def draw(colour, number):
    """A disc somewhere, of a colour, on a pale ground: no two are nearly the same."""
    random = torch.Generator().manual_seed(int(colour[1:], 16) % 1000 * 100 + number)
    x, y, r = torch.randint(8, 24, (3,), generator=random).tolist()
    ground = tuple(torch.randint(150, 255, (3,), generator=random).tolist())
    picture = Image.new("RGB", (40, 40), ground)
    ImageDraw.Draw(picture).ellipse((x - r // 2, y - r // 2, x + r, y + r), fill=colour)
    ImageDraw.Draw(picture).line((0, y, 40, r), fill="black", width=1 + number % 3)
    return picture


def write(folder, count):
    """`count` images of each class in a subfolder of its name -> the folder."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(count):
            draw(colour, number).save(folder / name / f"{number}.png")
    return folder
