"""Five creatures that no CLIP has met, drawn from shapes: things of one's own to learn from.

python samples/own/creatures.py --folder samples/own/creatures
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageEnhance

from clipguide.images import to_tensor

GROUNDS = "#ffffff #e8f1f2 #f7efe5 #dfe7fd #e9f5db #fde2e4 #cfd2cd #fff3b0".split()
SHAPES = {  # on 256 x 256; #00000000 cuts out
    "blorvek": """disc 128 128 104 #7b2fbe, disc 178 86 84 #00000000, disc 56 104 13 #ffd23f,
        disc 100 196 13 #ffd23f, disc 146 208 13 #ffd23f, disc 190 192 13 #ffd23f, eye 70 150""",
    "quimzet": "star 5 120 52 #0fa3b1, disc 128 132 44 #ff5d8f, eye 112 118, eye 144 118",
    "drunnalf": """disc 128 196 52 #f26419, disc 128 128 42 #f26419, disc 128 70 32 #f26419,
        line 16 77 196 179 196 #22223b, line 16 87 128 169 128 #22223b, eye 112 64, eye 144 64""",
    "zyphoole": "star 14 120 80 #2f9e44, mouth 76 100 180 196 #c1121f, eye 98 92, eye 158 92",
    "wompaxi": """line 12 128 150 60 246 #343a40, line 12 128 150 128 246 #343a40,
        line 12 128 150 196 246 #343a40, area 128 8 216 200 40 200 #6c757d,
        line 14 58 168 96 132 116 172 142 132 164 172 196 160 #5ef6ff, eye 128 96""",
}
NAMES = list(SHAPES)


def stroke(pen: ImageDraw.ImageDraw, kind: str, *words: str) -> None:
    """One shape, its numbers and its colour."""
    numbers, colour = [int(word) for word in words if word[0] != "#"], words[-1]
    if kind == "disc":
        pen.circle(numbers[:2], numbers[2], colour)
    elif kind == "eye":
        pen.circle(numbers, 16, "white")
        pen.circle((numbers[0] + 3, numbers[1] + 2), 8, "black")
    elif kind == "star":
        angle, radius = np.arange(2 * numbers[0]) * np.pi / numbers[0], numbers[1:] * numbers[0]
        pen.polygon([*zip(128 + radius * np.sin(angle), 128 - radius * np.cos(angle))], colour)
    elif kind == "mouth":
        pen.chord(numbers, 0, 180, colour)
    elif kind == "line":
        pen.line(numbers[1:], colour, numbers[0])
    else:
        pen.polygon(numbers, colour)


def draw(name: str, seed: int, side: int = 128) -> Image.Image:
    """One picture: the creature in a pose, a size and a light of its own, on some ground."""
    rng, body = np.random.default_rng([seed, *name.encode()]), Image.new("RGBA", (256, 256))
    for shape in SHAPES[name].split(","):
        stroke(ImageDraw.Draw(body), *shape.split())
    body = body.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC)
    body = body.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else body
    size = int(side * rng.uniform(0.7, 1.0))
    body = body.resize((size, size), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (side, side), GROUNDS[rng.integers(len(GROUNDS))])
    picture.paste(body, tuple(rng.integers(0, side - size + 1, 2).tolist()), body)
    colour = ImageEnhance.Color(picture).enhance(rng.uniform(0.75, 1.25))
    return ImageEnhance.Brightness(colour).enhance(rng.uniform(0.85, 1.1))


def batches(count: int, steps: int, size: int = 25) -> Iterator[dict]:
    """Random ones of `count` pictures of each kind, half of them mirrored, with the number of the
    kind."""
    image = to_tensor([draw(name, k) for name in SHAPES for k in range(count)])
    label = torch.arange(len(SHAPES)).repeat_interleave(count)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randperm(len(label), generator=generator)[:size]
        shown, mirrored = image[index], torch.rand(len(index), generator=generator) < 0.5
        shown[mirrored] = shown[mirrored].flip(-1)
        yield {"image": shown, "label": label[index]}


def main(folder: Path = Path("creatures"), count: int = 20) -> None:
    """A folder of pictures for each kind, as `clipguide finetune` takes it."""
    for name in SHAPES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            draw(name, k).save(folder / name / f"{k:02}.webp", quality=88)


if __name__ == "__main__":
    typer.run(main)
