"""Render one drawing as one square RGBA image, or raise the reason why it is left out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE, LONG = 256, 240  # pixels: the side of the image; the drawing's longer side in it
RENDER, RENDER_MAX = 512, 2048
ALPHA = 8  # of 255: a pixel with this alpha or less is not part of the drawing
MAX_BYTES = 500_000


class LeftOut(Exception):
    """The drawing is not usable; the message says why."""


def svg_size(svg: str) -> tuple[float, float]:
    """Return the (width, height) ratio of the page of an SVG.

    The source is viewBox. If there is none, the source is width and height. If these are missing
    too, the page is square.
    """
    head = svg[svg.find("<svg"):][:4000]
    box = re.search(r'viewBox\s*=\s*["\']([^"\']+)["\']', head)
    if box:
        numbers = re.split(r"[\s,]+", box.group(1).strip())
        if len(numbers) == 4 and float(numbers[2]) > 0 and float(numbers[3]) > 0:
            return float(numbers[2]), float(numbers[3])
    sides = [re.search(rf'\b{s}\s*=\s*["\']([\d.]+)', head) for s in ("width", "height")]
    if all(sides) and all(float(s.group(1)) > 0 for s in sides):
        return float(sides[0].group(1)), float(sides[1].group(1))
    return 1.0, 1.0


def rasterise(svg: str, long_side: int) -> Image.Image:
    """Return the page of an SVG as an RGBA image with a longer side of `long_side` pixels."""
    width, height = svg_size(svg)
    side = {"width": long_side} if width >= height else {"height": long_side}
    data = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, dpi=90, **side)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def crop_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Return the bounding box (left, top, right, bottom) of the pixels with an alpha over ALPHA.

    Raises:
        LeftOut: there is no such pixel.
    """
    box = image.getchannel("A").point(lambda a: 255 if a > ALPHA else 0).getbbox()
    if box is None:
        raise LeftOut("empty")
    return box


def load(source: str, is_path: bool) -> Image.Image:
    """Return the cropped RGBA drawing.

    Args:
        source: the text of an SVG, or the path of an SVG or a bitmap.
        is_path: whether `source` is a path.

    Raises:
        LeftOut: the SVG file is over 500 kB or embeds a bitmap, or the drawing is empty, or the SVG
            does not render.
    """
    if is_path and not source.endswith(".svg"):
        image = Image.open(source).convert("RGBA")
        return image.crop(crop_box(image))
    svg = source
    if is_path:
        raw = Path(source).read_bytes()
        if len(raw) > MAX_BYTES or b"<image" in raw:
            raise LeftOut("bigger than 500 kB or embeds a bitmap")
        svg = raw.decode("utf-8", errors="replace")
    try:
        image = rasterise(svg, RENDER)
        box = crop_box(image)
        side = max(box[2] - box[0], box[3] - box[1])
        if side < LONG:
            image = rasterise(svg, min(RENDER_MAX, RENDER * LONG * 2 // max(side, 1)))
            box = crop_box(image)
    except ValueError as error:
        raise LeftOut(f"does not render: {error}") from None
    return image.crop(box)


def fit(image: Image.Image) -> Image.Image:
    """Return the drawing scaled to a longer side of LONG pixels, centred on SIZE x SIZE pixels.

    The filter is Lanczos on premultiplied colour.

    Raises:
        LeftOut: the scaled drawing is thinner than 12 pixels.
    """
    scale = LONG / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if min(size) < 12:
        raise LeftOut("thinner than 12 px")
    small = image.resize(size, Image.Resampling.LANCZOS)  # Pillow premultiplies RGBA
    page = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    page.paste(small, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return page


def render(source: str, is_path: bool, grey_rule: str) -> tuple[np.ndarray, bool]:
    """Return the RGBA image, uint8 (SIZE, SIZE, 4), and whether it is grey.

    Some grey drawings are true to their object, for example an elephant. A stencil is not.

    Args:
        source: the text of an SVG, or the path of an SVG or a bitmap.
        is_path: whether `source` is a path.
        grey_rule: `keep` keeps all grey drawings. `shaded` keeps those that have more than black
            and white. `drop` keeps none.

    Raises:
        LeftOut: the drawing does not load, is near-empty, or breaks the rule.
    """
    pixels = np.array(fit(load(source, is_path)))
    opaque = pixels[pixels[..., 3] > 128][:, :3].astype(np.int16)
    if len(opaque) < 0.03 * SIZE * SIZE:
        raise LeftOut("near-empty (< 3 % of pixels opaque)")
    grey = bool(((opaque.max(1) - opaque.min(1)) > 28).mean() < 0.03)
    if grey_rule != "keep":
        if (opaque.min(1) > 235).mean() > 0.985:
            raise LeftOut("near-white")
        level = opaque.mean(1)
        stencil = ((level < 50) | (level > 225)).mean() > 0.85
        if grey and (stencil or grey_rule == "drop"):
            raise LeftOut("near-monochrome")
    pixels[pixels[..., 3] == 0] = 0
    return pixels, grey
