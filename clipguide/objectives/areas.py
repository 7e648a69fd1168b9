"""Objectives of a part of the image: a box, a mask, or the rest of the image.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..clip import Clip
from ..errors import UsageError
from ..views import Cutouts
from .base import Nothing, Objective
from .features import sides
from .similarity import OnePrompt, Similarity

Area = Sequence[float] | torch.Tensor | Image.Image
Mask = Callable[[int, int], torch.Tensor]  # H, W -> mask_HW in [0, 1], float32 on the CPU

FILL = 0.5  # grey level shown outside the mask
SEEN = 0.01  # smallest value of a mask that counts as inside


class Region(Objective):
    """An objective of one area of the image.

    It sees the smallest rectangle that contains the area. Outside a mask, the rectangle is grey
    (Blended Diffusion, Avrahami et al. 2022, eq. 4, shows black there).

    Args:
        objective: the objective of the area.
        area: a box (x0, y0, x1, y1), in fractions of the image from its top left corner (0, 0); or
            a mask, H x W or 1 x H x W in [0, 1], or an image that is white inside the area. A mask
            of any size is resized to the images.

    Raises:
        UsageError: the area is empty or lies outside the image.
    """

    def __init__(self, objective: Objective, area: Area | Mask) -> None:
        self.objective, self._mask = objective, _to_mask(area)

    def __call__(self, image_B3HW, generators=None):
        mask_HW = self._mask(*image_B3HW.shape[-2:])
        rows, columns = (_span((mask_HW > SEEN).any(axis)) for axis in (1, 0))
        mask_HW = mask_HW[rows, columns]
        image_B3HW = image_B3HW[..., rows, columns]
        if (mask_HW < 1).any():
            image_B3HW = FILL + (image_B3HW - FILL) * mask_HW.to(image_B3HW)
        return self.objective(image_B3HW, generators)

    def at(self, progress):
        now = self.objective.at(progress)
        return now if isinstance(now, Nothing) else Region(now, self._mask)

    def weight(self, progress):
        return self.objective.weight(progress)

    def terms(self):
        yield from self.objective.terms()


def regions(
    clip: Clip,
    areas: Sequence[tuple[Area, OnePrompt]],
    *,
    background: OnePrompt | None = None,
    weights: Sequence[float] | None = None,
    views: Cutouts | None = Cutouts(),  # noqa: B008 (frozen)
    kind: str = "spherical",
    chunk: int | None = None,
) -> Objective:
    """Return an objective that compares each area of the image with its own prompt.

    The loss is Σ w·loss / Σ |w| over the areas and the background.

    Args:
        clip: the CLIP that embeds images and prompts.
        areas: pairs of an area, as in `Region`, and its prompt or list of prompts, as in
            `Similarity`: [((0, 0, 0.5, 1), "a red fox"), (mask, "an owl")].
        background: the prompt of everything outside the areas; none if None.
        weights: one number for each area, and a last one for the background; all 1 if None.
        views: the crops that are embedded; the whole area if None.
        kind: "spherical" or "dot".
        chunk: the largest number of views that are encoded at a time.
    """
    masks = [_to_mask(area) for area, _ in areas]
    prompts = [prompt for _, prompt in areas]
    if background is not None:
        masks.append(_rest_of(list(masks)))
        prompts.append(background)
    if not prompts:
        raise UsageError("There are no regions: give at least one area and its prompt.")
    weights = [1.0] * len(prompts) if weights is None else list(weights)
    if len(weights) != len(prompts):
        raise UsageError(f"{len(prompts)} regions need as many weights, not {len(weights)}.")
    total = sum(map(abs, weights))
    if not (math.isfinite(total) and total > 0):
        raise UsageError("The weights of regions must be finite, and not all 0.")
    terms = [
        weight / total * Region(Similarity(clip, prompt, views=views, kind=kind, chunk=chunk), mask)
        for mask, prompt, weight in zip(masks, prompts, weights, strict=True)
    ]
    whole = terms[0]
    for term in terms[1:]:
        whole = whole + term
    return whole


def _to_mask(area: Area | Mask) -> Mask:
    if isinstance(area, (torch.Tensor, Image.Image)):
        return _mask(area)
    return area if callable(area) else _box(area)


def _box(box: Sequence[float]) -> Mask:
    """Return the mask of a box: at least one pixel."""
    try:
        x0, y0, x1, y1 = map(float, box)
    except (TypeError, ValueError):
        raise UsageError(f"A region is a box (x0, y0, x1, y1) or a mask, not {box!r}.") from None
    if not all(0 <= value <= 1 for value in (x0, y0, x1, y1)):
        raise UsageError(f"The region {box} is outside of the image, which is (0, 0, 1, 1).")
    if not (x0 < x1 and y0 < y1):
        raise UsageError(f"The region {box} is empty: x0 must be below x1, and y0 below y1.")

    def mask_of(height: int, width: int) -> torch.Tensor:
        mask_HW = torch.zeros(height, width)
        mask_HW[_pixels(y0, y1, height), _pixels(x0, x1, width)] = 1
        return mask_HW

    return mask_of


def _pixels(low: float, high: float, side: int) -> slice:
    first = min(round(low * side), side - 1)
    return slice(first, max(first + 1, round(high * side)))


def _mask(mask: torch.Tensor | Image.Image) -> Mask:
    if isinstance(mask, Image.Image):
        mask = torch.from_numpy(np.array(mask.convert("L"))) / 255
    mask_1HW = mask[None] if mask.ndim == 2 else mask
    if mask_1HW.ndim != 3 or len(mask_1HW) != 1 or not mask_1HW.numel():
        raise UsageError(f"A mask is 1 x H x W, or H x W, not {sides(mask)}.")
    mask_1HW = mask_1HW.detach().float().cpu()
    if not ((mask_1HW >= 0) & (mask_1HW <= 1)).all():
        raise UsageError("The values of a mask lie in [0, 1].")
    if not (mask_1HW > SEEN).any():
        raise UsageError("The mask of a region is empty.")

    def mask_of(height: int, width: int) -> torch.Tensor:
        mask_HW = _resize(mask_1HW, height, width)
        if not (mask_HW > SEEN).any():
            raise UsageError(f"The mask of a region covers no pixel of {width}x{height} ones.")
        return mask_HW

    return mask_of


def _resize(mask_1HW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if mask_1HW.shape[1:] == (height, width):
        return mask_1HW[0]
    size = (height, width)
    mask_11HW = F.interpolate(mask_1HW[None], size, mode="bilinear", antialias=True)
    return mask_11HW[0, 0].clamp(0, 1)


def _rest_of(masks: Sequence[Mask]) -> Mask:
    """Return the area that none of the masks covers."""

    def mask_of(height: int, width: int) -> torch.Tensor:
        rest_HW = torch.ones(height, width)
        for mask in masks:
            rest_HW = torch.minimum(rest_HW, 1 - mask(height, width))
        if not (rest_HW > SEEN).any():
            raise UsageError("The regions cover the whole image: there is no background.")
        return rest_HW

    return mask_of


def _span(inside: torch.Tensor) -> slice:
    """Return the range from the first to the last True."""
    places = inside.nonzero().flatten()
    return slice(int(places[0]), int(places[-1]) + 1)
