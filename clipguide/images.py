"""Read and write images: files to RGB, RGB to tensors and back, contact sheets.

Shapes: B images, 3 channels, H rows, W columns. Tensors are float32 in [0, 1], RGB.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .errors import ClipguideError, ClipguideWarning
from .reading import check_file, in_sentences, open_image, to_srgb, too_wordy, turned, without_texts
from .transparency import check_alpha

LABEL_HEIGHT = 18  # height in pixels of the label under each image of a contact sheet
FAR = 10.0  # above this, floats are not in [0, 1]
BAND = 1 << 22  # pixels
NARROW, WIDE = 12, 40  # largest number of bytes per pixel until an image is RGB
GAP = 4  # pixels between the images of a contact sheet


def load(
    source: str | os.PathLike | BinaryIO | Image.Image,
    *,
    alpha: str = "white",
    side: int | None = None,
    icc: bool = False,
    megapixels: float | None = None,
) -> Image.Image:
    """Return an image file, or a PIL image of any mode, as 8-bit RGB.

    The image is turned as its EXIF says. A transparent image is put on white (with alpha="drop" it
    stays transparent, for a transform that drops it). Of an animation, the first frame is taken.
    16-bit values are scaled. For 32-bit integers and floats, the values show the range. With
    `side`, a JPEG may be decoded at a half, a quarter or an eighth of its size, if no side becomes
    shorter than that. With `icc`, colours of another profile are converted to sRGB.

    Raises:
        UsageError: it cannot be read, or has more than `megapixels` (179 by default).
    """
    settings = {"alpha": alpha, "side": side, "icc": icc, "megapixels": megapixels}
    return load_frames(source, count=1, **settings)[0]


def load_frames(
    source: str | os.PathLike | BinaryIO | Image.Image,
    *,
    count: int,
    alpha: str = "white",
    side: int | None = None,
    icc: bool = False,
    megapixels: float | None = None,
    opened: Callable[[Image.Image, tuple[int, int]], None] | None = None,
) -> list[Image.Image]:
    """Return `count` evenly spaced frames of an animation, as `load`, with the first among them;
    fewer if it has fewer. Before the image is decoded, `opened` is called with it, at the size to
    which it is decoded, and with its size in the file."""
    check_alpha(alpha)
    if isinstance(source, Image.Image):
        return _frames(source, count, alpha, icc)
    name = getattr(source, "name", "the image") if hasattr(source, "read") else Path(source)

    def decode(stream: BinaryIO) -> list[Image.Image]:
        with open_image(stream, megapixels=megapixels) as image:
            size = image.size
            if side:
                image.draft("RGB", (side, side))
            if opened:
                opened(image, size)
            return _frames(image, count, alpha, icc)

    with in_sentences(name):
        if isinstance(name, Path):
            check_file(name)
        with _opened(source) as stream:
            try:
                return decode(stream)
            except ValueError as error:
                if not too_wordy(error):
                    raise
                stream.seek(0)
                return decode(without_texts(stream.read()))


def to_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Return RGB images of one size as image_B3HW in [0, 1]."""
    array_BHW3 = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(array_BHW3).permute(0, 3, 1, 2) / 255


def to_pil(image_B3HW: torch.Tensor) -> list[Image.Image]:
    """Return image_B3HW as RGB images: clamped to [0, 1], rounded half to even. Raise
    ClipguideError if a value is not a number."""
    image_B3HW = image_B3HW.detach().float().cpu()
    if not torch.isfinite(image_B3HW).all():
        raise ClipguideError(
            "The image has values that are not numbers: try dtype float32, or less strength."
        )
    array_BHW3 = (image_B3HW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array_HW3) for array_HW3 in array_BHW3]


def contact_sheet(
    pictures: Sequence[Image.Image], *, labels: Sequence[str] | None = None, columns: int
) -> Image.Image:
    """Return RGB images in rows of `columns`, on white, each above its label."""
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    label_height = LABEL_HEIGHT if labels else 0
    cell_width, cell_height = width + GAP, height + label_height + GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for i, picture in enumerate(pictures):
        x, y = GAP + i % columns * cell_width, GAP + i // columns * cell_height
        sheet.paste(picture, (x, y))
        if labels:
            text = _fit(labels[i], font, width)
            draw.text((x, y + height + 2), text, fill="black", font=font)
    return sheet


def _opened(source: str | os.PathLike | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return nullcontext(source) if hasattr(source, "read") else open(source, "rb")


def cost(image: Image.Image) -> int:
    """Return the bytes of memory to decode an image, at most."""
    wide = image.mode.startswith("I") or image.mode == "F"
    return image.width * image.height * (WIDE if wide else NARROW)


def _frames(image: Image.Image, count: int, alpha: str, icc: bool) -> list[Image.Image]:
    total = getattr(image, "n_frames", 1) if count > 1 else 1
    frames = []
    for i in range(min(count, total)):
        image.seek(i * total // min(count, total))
        frames.append(_to_rgb(image, alpha, icc))
    return frames


def _to_rgb(image: Image.Image, alpha: str, icc: bool) -> Image.Image:
    image = turned(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide_grey(image)
    profile = image.info.get("icc_profile") if icc else None
    if image.has_transparency_data:
        if alpha == "drop" or profile:
            image = image.convert("RGBA")
        if profile:
            image = to_srgb(image, profile)
        return image if alpha == "drop" else _on_white(image)
    return (to_srgb(image, profile) if profile else image).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Return a transparent image on white. It works on bands of rows, because the intermediate is
    four times as large."""
    laid = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = image.crop(box).convert("RGBA")
        laid.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band), box)
    return laid


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """Return numbers of more than 8 bits, in one channel, as RGB. 16-bit numbers have that range.
    For 32-bit numbers and floats, the values show it: [0, 1], 8 bits, 16 bits, or any other range,
    which is stretched from black to white with a ClipguideWarning."""
    array = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(array.min()), float(array.max())
    floats = image.mode == "F"
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif floats and -FAR <= low and high <= FAR:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
    else:
        warnings.warn(
            f"An image of {'floats' if floats else 'integers'} has numbers from {low:.6g} to "
            f"{high:.6g}: they are spread from black to white.",
            ClipguideWarning,
            stacklevel=2,
        )
    grey = ((array - low) * (255 / max(high - low, 1e-9))).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _fit(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """Return the text, shortened with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
