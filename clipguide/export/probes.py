"""The images and texts that measure an export, and torch's vectors of them.

Shapes: N images or texts, L tokens, 3 channels, H rows, W columns, D the width of the embedding.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from ..clip import Clip
from ..errors import ClipguideError, UsageError
from ..images import to_tensor

COUNT = 32  # number of drawings
MOST = 256  # largest number of given images
SIDE = 512  # pixels: larger images are reduced
ODD = (
    "",
    "A Red FOX, on   snow!",
    "it's 3 o'clock; they're 20 km/h faster (or so)",
    "狐と家, Лиса, ein Füchslein, 🦊",
    "a fox and a house and a tree and a lake " * 40,
)


@dataclass(frozen=True)
class Agreement:
    """The cosine similarities between the vectors of an export and those of torch, over a number of
    images or texts."""

    mean: float
    lowest: float
    count: int


@dataclass(frozen=True)
class Probes:
    """Images image_13HW in [0, 1] of many sizes, texts, their tokens_NL, and torch's unit
    vectors_ND of both."""

    image_13HW: list[torch.Tensor]
    image_ND: torch.Tensor
    texts: list[str]
    tokens_NL: torch.Tensor
    text_ND: torch.Tensor

    @classmethod
    def of(cls, clip: Clip, pictures: Sequence[Image.Image] | None = None) -> Probes:
        """Return the probes of a CLIP: the given RGB images, or drawings. Raise UsageError for
        fewer than two images: one calibrates and one measures."""
        if pictures is not None and len(pictures) < 2:
            raise UsageError("Give at least two images: half of them calibrate, half measure.")
        if pictures is None:
            pictures = drawings(clip.image_size)
        chosen = [picture.convert("RGB") for picture in pictures[:MOST]]
        for picture in chosen:
            picture.thumbnail((SIDE, SIDE))
        image_13HW = [to_tensor([picture]) for picture in chosen]
        texts = sample_texts()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # words of the text that is cut
            image_ND = torch.cat([clip.encode_image(image) for image in image_13HW])
            text_ND = clip.encode_text(texts)
        return cls(image_13HW, image_ND, texts, clip._tokenizer(texts), text_ND)


def compare(ours_ND: torch.Tensor, theirs_ND: torch.Tensor, *, what: str) -> Agreement:
    """Return how well two encoders agree. Raise ClipguideError if a vector is not finite."""
    if not torch.isfinite(ours_ND).all():
        raise ClipguideError(f"{what} makes vectors of values that are no numbers.")
    cosine_N = (ours_ND.double() * theirs_ND.double()).sum(1)
    cosine_N = cosine_N / ours_ND.double().norm(dim=1) / theirs_ND.double().norm(dim=1)
    return Agreement(float(cosine_N.mean()), float(cosine_N.min()), len(cosine_N))


def demand(found: Agreement, bar: float, *, what: str) -> Agreement:
    """Return the agreement if its lowest cosine is high enough. Otherwise raise ClipguideError."""
    if not found.lowest >= bar:
        raise ClipguideError(
            f"{what} was not written: it does not agree with torch (cosine {found.lowest:.5f} at "
            f"the lowest, not {bar:g})."
        )
    return found


def sample_texts() -> list[str]:
    """Return captions of common objects, and texts that are hard for tokenizers."""
    names = resources.files("clipguide.zero_shot").joinpath("background.txt").read_text("utf-8")
    return [*ODD, *(f"a photo of a {name}" for name in names.split("\n")[:1700:20])]


def drawings(size: int, *, count: int = COUNT) -> list[Image.Image]:
    """Return synthetic images, always the same: gradients, shapes, strokes and grain, at about the
    size of the encoder. Half are square."""
    return [_drawing(random.Random(seed), size, square=seed % 4 < 2) for seed in range(count)]


def _drawing(draw: random.Random, size: int, *, square: bool) -> Image.Image:
    width = max(16, int(size * draw.uniform(0.7, 2)))
    height = width if square else max(16, int(width * draw.uniform(0.5, 2)))
    ends = np.array([[draw.random() for _ in range(3)] for _ in range(3)])
    y_HW, x_HW = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    ground = ends[0] + x_HW[..., None] * (ends[1] - ends[0]) + y_HW[..., None] * (ends[2] - ends[0])
    noise = np.random.default_rng(draw.getrandbits(32)).normal(0, 0.03, ground.shape)
    picture = Image.fromarray(((ground + noise).clip(0, 1) * 255).astype(np.uint8))
    brush = ImageDraw.Draw(picture)
    for _ in range(draw.randint(1, 12)):
        colour = tuple(draw.randrange(256) for _ in range(3))
        corners = [(draw.random() * width, draw.random() * height) for _ in range(4)]
        (left, right), (top, bottom) = (sorted(side) for side in zip(*corners[:2]))
        kind = draw.choice(("ellipse", "rectangle", "polygon", "line"))
        if kind in ("ellipse", "rectangle"):
            getattr(brush, kind)((left, top, right, bottom), fill=colour)
        elif kind == "polygon":
            brush.polygon(corners, fill=colour)
        else:
            brush.line(corners, fill=colour, width=draw.randint(1, 1 + size // 16))
    return picture.filter(ImageFilter.GaussianBlur(draw.choice((0, 0, 1, 2))))
