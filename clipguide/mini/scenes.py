"""Put the images of several objects together, and colour the ground behind them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Where the objects of a scene are, in halves of the image from its top and its left.
LAYOUTS = {
    2: ((0.5, 0), (0.5, 1)),
    3: ((0, 0), (0, 1), (1, 0.5)),
    4: ((0, 0), (0, 1), (1, 0), (1, 1)),
}
STACKED = ((0, 0.5), (1, 0.5))  # of two, of which the first is above
# The colours of grounds: "on a yellow background", "at night".
GROUNDS = {
    "black": (24, 24, 26), "white": (255, 255, 255), "red": (222, 62, 58),
    "green": (112, 190, 104), "yellow": (252, 218, 84), "blue": (104, 170, 236),
    "brown": (152, 106, 72), "purple": (152, 104, 204), "pink": (248, 170, 200),
    "orange": (250, 158, 70), "grey": (168, 170, 174), "night": (44, 52, 104),
}  # fmt: skip
WHITE, EDGE = 0.95, 2  # in [-1, 1]: the ground is lighter; pixels of its soft edge
GAP = 3  # pixels: the ground does not go through gaps of less than twice that, into white objects
OBJECT = 0.5  # in [-1, 1]: where an object stands, it is darker
LEAST = 0.25  # of 1 - lightness, in [0, 1], that an object has at its edge


def together(image_B3HW: Tensor, ground: str | None = None, *, above: bool = False) -> Tensor:
    """Return one page_13HW of images of objects on white, all in [-1, 1]: one object as it is, or
    two to four at half their size. `ground`: one of GROUNDS. `above`: whether the first of two
    stands on the second."""
    number, (height, width) = len(image_B3HW), image_B3HW.shape[-2:]
    page = image_B3HW
    if number > 1:
        half_B3hw = F.interpolate(image_B3HW, scale_factor=0.5, mode="area")
        page, (h, w) = image_B3HW.new_ones(1, 3, height, width), half_B3hw.shape[-2:]
        if above:
            half_B3hw = _touching(*half_B3hw)
        for image, (top, left) in zip(half_B3hw, STACKED if above else LAYOUTS[number]):
            y, x = int(top * h), int(left * w)
            page[0, :, y : y + h, x : x + w] = image
    return page if ground is None else grounded(page, ground)


def _touching(upper_3hw: Tensor, lower_3hw: Tensor) -> list[Tensor]:
    """Return two images moved down and up over the white below and above their objects."""
    moved = []
    for image, to_end in ((upper_3hw, True), (lower_3hw, False)):
        rows = (image.amin(0) < OBJECT).any(1).nonzero()
        if len(rows):
            image = image.roll(len(image[0]) - 1 - int(rows[-1]) if to_end else -int(rows[0]), 1)
        moved.append(image)
    return moved


def grounded(page_13HW: Tensor, ground: str) -> Tensor:
    """Return a page whose white ground, as far as it reaches from the border, has the colour of
    GROUNDS. An edge is a mixture a·object + (1 - a)·white, whose white part takes the colour. The
    share a comes from the lightness (the least channel) there and of the object beside it."""
    light = (page_13HW > WHITE).all(1, keepdim=True).to(page_13HW)
    wide = 1 - F.max_pool2d(1 - light, 2 * GAP + 1, 1, GAP)
    found = wide.clone()
    found[..., 1:-1, 1:-1] = 0
    while not torch.equal(found, more := F.max_pool2d(found, 3, 1, 1) * wide):
        found = more
    found = F.max_pool2d(found, 2 * GAP + 1, 1, GAP) * light
    behind = F.max_pool2d(found, 2 * EDGE + 1, 1, EDGE) > 0
    dark = (1 - page_13HW.amin(1, keepdim=True)) / 2
    share = dark / F.max_pool2d(dark, 2 * EDGE + 1, 1, EDGE).clamp(min=LEAST) * (1 - light)
    colour = page_13HW.new_tensor(GROUNDS[ground]).view(1, 3, 1, 1) / 255
    return torch.where(behind, page_13HW - 2 * (1 - share) * (1 - colour), page_13HW)
