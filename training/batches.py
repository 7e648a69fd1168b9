"""Training samples: drawings placed, recoloured, paired and counted, with true captions.

Every visit draws a picture and its caption anew. What `holdout.json` lists never appears: the
test styles, 400 concept x family pairs, and 100 colour x thing pairs, in pixels or in words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from training import common
from training.data.colours import TERMS, colour_name, dominant_colour

PLACES = {"left": "to the left of", "right": "to the right of"}
COUNTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Sample:
    """rgb (size, size, 3) uint8; the concepts in it; the true colour term of a single thing."""

    rgb: np.ndarray
    caption: str
    concepts: tuple[str, ...]
    colour: str | None


@cache
def _inflect():
    import inflect

    return inflect.engine()


def article(phrase: str) -> str:
    """"an orange fox" for "orange fox"."""
    return _inflect().a(phrase)


def plural(noun: str) -> str:
    """"foxes" for "fox"; the last word of "glass of wine" is left alone."""
    head, of, rest = noun.partition(" of ")
    return _inflect().plural(head) + of + rest


class TrainingSet:
    """The built data (`training.data`) as an endless source of samples of `size` pixels."""

    def __init__(self, folder: Path = common.CACHE / "data", size: int = 128) -> None:
        self.size = size
        self.rows = [json.loads(line) for line in (folder / "manifest.jsonl").open()]
        self.rgba = shrink(folder, size)
        hold = common.holdout()
        self.held_pairs = {(p["concept"], p["family"]) for p in hold["pairs"]}
        self.held_colours = {(p["colour"], p["concept"]) for p in hold["colours"]}
        drawn = [r for r in self.rows if r["split"] == "train"]
        self.train = [r for r in drawn if (r["concept"], r["family"]) not in self.held_pairs]
        self.held = [r for r in drawn if (r["concept"], r["family"]) in self.held_pairs]
        self.concepts = sorted({r["concept"] for r in drawn})
        self.plain_concepts = sorted({r["concept"] for r in drawn if not r["symbol"]})
        self.by_concept: dict[str, list[dict]] = {}
        for row in self.train:
            self.by_concept.setdefault(row["concept"], []).append(row)
        self._named = list(self.by_concept)

    def on_white(self, rows: list[dict]) -> torch.Tensor:
        """(n, 3, size, size) in [0, 1]."""
        rgba = np.stack([self.rgba[r["index"]] for r in rows]).astype(np.float32) / 255
        rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        return torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous()

    def row(self, rng: np.random.Generator) -> dict:
        """A drawing: half the time by picture, half by concept, so that rare ones are seen too."""
        if rng.random() < 0.5:
            return self.train[rng.integers(len(self.train))]
        rows = self.by_concept[self._named[rng.integers(len(self._named))]]
        return rows[rng.integers(len(rows))]

    def object(self, row: dict, rng: np.random.Generator, recolour: float) -> tuple[Image.Image, str | None]:
        """A drawing, perhaps mirrored and in another hue, and its true colour term or None."""
        while True:
            picture = Image.fromarray(self.rgba[row["index"]])
            if rng.random() < recolour:
                picture = shift_hue(picture, rng)
            colour, share = dominant_colour(np.asarray(picture)[::4, ::4])
            colour = colour if share >= 0.5 else None
            if (colour, row["concept"]) not in self.held_colours:
                break
            recolour = 1.0  # draw again, away from the held-out pair
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture, colour

    def canvas(self, rng: np.random.Generator) -> tuple[Image.Image, str | None]:
        """A background, white half the time, and its colour term unless it is white."""
        if rng.random() < 0.5:
            return Image.new("RGBA", (self.size,) * 2, "white"), None
        rgb = rng.integers(0, 256, 3)
        if rng.random() < 0.25:  # a slope or a soft pattern, without a name
            small = np.clip(rgb + rng.normal(0, 50, (rng.integers(2, 6), rng.integers(2, 6), 3)), 0, 255)
            image = Image.fromarray(small.astype(np.uint8)).resize((self.size,) * 2, Image.Resampling.BICUBIC)
            return image.convert("RGBA"), None
        return Image.new("RGBA", (self.size,) * 2, tuple(int(c) for c in rgb)), colour_name(rgb)

    def single(self, row: dict, rng: np.random.Generator, *, recolour: float = 0.3,
               smallest: float = 0.55, background: bool = True, turn: float = 0.3) -> Sample:
        """One thing somewhere on a background."""
        picture, colour = self.object(row, rng, recolour)
        canvas, ground = self.canvas(rng) if background else (
            Image.new("RGBA", (self.size,) * 2, "white"), None)
        if rng.random() < turn:
            picture = picture.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
        scale = rng.uniform(smallest, 1.0)
        place(canvas, picture, scale, *rng.uniform(0, 1, 2))
        size = "small" if scale < 0.62 else "large" if scale > 0.95 else None
        caption = self.describe(row["concept"], colour, size, ground, rng)
        return Sample(np.asarray(canvas.convert("RGB")), caption, (row["concept"],), colour)

    def describe(self, concept: str, colour: str | None, size: str | None, ground: str | None,
                 rng: np.random.Generator) -> str:
        """One of many phrasings of what is true."""
        said = colour if colour and rng.random() < 0.6 else None
        thing = " ".join(w for w in (size if rng.random() < 0.3 else None, said, concept) if w)
        choice = rng.integers(6)
        if choice == 0 and said:
            text = f"{concept}, {said}"
        elif choice <= 1:
            text = thing
        elif choice == 2:
            kind = ["a drawing of", "a picture of", "an icon of", "clip art of"][rng.integers(4)]
            text = f"{kind} {article(thing)}"
        else:
            text = article(thing)
        return f"{text} on {article(ground)} background" if ground and rng.random() < 0.6 else text

    def several(self, row: dict, rng: np.random.Generator) -> Sample:
        """Two to four of one thing."""
        picture, colour = self.object(row, rng, 0.3)
        canvas, ground = self.canvas(rng)
        count = int(rng.integers(2, 5))
        cells = [(0, 0.5), (1, 0.5)] if count == 2 else [(0, 0), (1, 0), (0, 1), (1, 1)]
        for x, y in [cells[i] for i in rng.permutation(len(cells))[:count]]:
            place(canvas, picture, rng.uniform(0.4, 0.5), x, y)
        named = " ".join(w for w in (colour if rng.random() < 0.6 else None, plural(row["concept"])) if w)
        text = f"{COUNTS[count]} {named}"
        if ground and rng.random() < 0.5:
            text = f"{text} on {article(ground)} background"
        return Sample(np.asarray(canvas.convert("RGB")), text, (row["concept"],), colour)

    def pair(self, a: dict, b: dict, rng: np.random.Generator) -> Sample:
        """Two things, a on the left."""
        canvas, _ = self.canvas(rng)
        names = []
        for x, row in ((0.0, a), (1.0, b)):
            picture, colour = self.object(row, rng, 0.3)
            place(canvas, picture, rng.uniform(0.4, 0.52), x, rng.uniform(0.2, 0.8))
            names.append(article(" ".join(w for w in (colour if rng.random() < 0.5 else None,
                                                      row["concept"]) if w)))
        left, right = names
        text = [f"{left} and {right}", f"{right} and {left}", f"{left} beside {right}",
                f"{left} to the left of {right}", f"{right} to the right of {left}"][rng.integers(5)]
        return Sample(np.asarray(canvas.convert("RGB")), text,
                      tuple(dict.fromkeys((a["concept"], b["concept"]))), None)

    def sample(self, rng: np.random.Generator) -> Sample:
        """A sample of the CLIPs' training: 76 % single things, 12 % pairs, 12 % several of one."""
        kind, row = rng.random(), self.row(rng)
        if kind < 0.76:
            sample = self.single(row, rng)
        elif kind < 0.88:
            sample = self.pair(row, self.row(rng), rng)
        else:
            sample = self.several(row, rng)
        return sample


def shrink(folder: Path, size: int) -> np.ndarray:
    """All pictures as RGBA uint8 of size x size, memory-mapped; made at first use."""
    path = folder / f"pictures-{size}.npy"
    if not path.exists():
        large = np.load(folder / "pictures.npy", mmap_mode="r")
        out = np.lib.format.open_memmap(path.with_suffix(".part"), "w+", np.uint8, (len(large), size, size, 4))
        for k in range(0, len(large), 256):
            x = torch.from_numpy(np.asarray(large[k:k + 256], np.float32)).permute(0, 3, 1, 2)
            x = torch.cat([x[:, :3] * x[:, 3:] / 255, x[:, 3:]], 1)  # premultiplied, so edges stay clean
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
            x = torch.cat([x[:, :3] * 255 / x[:, 3:].clamp_min(1e-3), x[:, 3:]], 1)
            out[k:k + 256] = x.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
        out.flush()
        path.with_suffix(".part").rename(path)
    return np.load(path, mmap_mode="r")


def shift_hue(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn the hue by any angle; saturation and value by a little."""
    hue, saturation, value = (np.asarray(c, np.int32) for c in picture.convert("RGB").convert("HSV").split())
    hue = (hue + rng.integers(256)) % 256
    saturation = np.clip(saturation * rng.uniform(0.6, 1.4), 0, 255)
    value = np.clip(value * rng.uniform(0.7, 1.15), 0, 255)
    hsv = np.stack([hue, saturation, value], -1).astype(np.uint8)
    out = Image.fromarray(hsv, "HSV").convert("RGB")
    out.putalpha(picture.getchannel("A"))
    return out


def place(canvas: Image.Image, picture: Image.Image, scale: float, x: float, y: float) -> None:
    """Composite the picture at `scale` of the canvas; x and y in [0, 1] from left, top."""
    side = max(8, round(canvas.width * scale))
    room = canvas.width - side
    small = picture.resize((side, side), Image.Resampling.BILINEAR)
    canvas.alpha_composite(small, (round(room * x), round(room * y)))
