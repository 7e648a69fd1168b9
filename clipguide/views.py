"""Views: crops of a picture, resized, mirrored and jittered, each drawn from its own generator.

A gradient averaged over views is one that no single pixel grid can exploit (cutouts: Crowson et al.
2022, VQGAN-CLIP). All numbers of an image's views come from that image's generator, in a fixed
order, so an image has the same views in a batch and alone.

`Cutouts` are plain and quick; `Warped` views are turned, seen in perspective, recoloured and more.

Shapes: B images, N views an image, 3 channels, H rows, W columns, s the side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from . import warps
from .errors import ClipguideError, UsageError, close_matches


class Views(Protocol):
    """What objectives ask of views: how many an image has, and themselves."""

    def __len__(self) -> int: ...

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator], *, size: int
    ) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """How views are drawn; called, draws them.

    The first view is the whole picture as it is, unless `whole` is off; `number` crops follow, with
    a side of `size_range` times the shorter side of the picture. A crop is mirrored with
    probability `flip`; its contrast is scaled and each of its channels shifted by up to ± `jitter`,
    and normal noise of deviation `noise` is added, for pixels in [0, 1]. Values may leave [0, 1].
    """

    number: int = 4
    size_range: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.5
    jitter: float = 0.05
    noise: float = 0.02
    whole: bool = True

    def __post_init__(self) -> None:
        low, high = self.size_range
        if self.number < 0 or self.number + self.whole < 1:
            raise UsageError(f"There must be at least one view, not {self.number}.")
        if not 0 < low <= high <= 1:
            raise UsageError(f"A size_range of views lies in (0, 1], not {self.size_range}.")

    def __len__(self) -> int:
        """Views an image."""
        return self.number + self.whole

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator], *, size: int
    ) -> torch.Tensor:
        """Views (B·N, 3, size, size), those of image 0 first, differentiable.

        `generators` are on the CPU, one an image: ClipguideError if they are not as many.
        """
        _check_number(generators, image_B3HW)
        views = [
            view
            for image_3HW, generator in zip(image_B3HW, generators, strict=True)
            for view in self._views(image_3HW, generator, size)
        ]
        return torch.stack(views)

    def _views(
        self, image_3HW: torch.Tensor, generator: torch.Generator, size: int
    ) -> list[torch.Tensor]:
        views = [_resize(image_3HW, size)] if self.whole else []
        random_N8 = torch.rand(self.number, 8, generator=generator)
        for scale, y, x, flip, contrast, *shift in random_N8.tolist():
            view_3ss = _resize(_crop(image_3HW, self.size_range, scale, y, x), size)
            if flip < self.flip:
                view_3ss = view_3ss.flip(-1)
            views.append(self._jitter(view_3ss, contrast, shift, generator))
        return views

    def _jitter(
        self, view_3ss: torch.Tensor, contrast: float, shift: list[float], generator
    ) -> torch.Tensor:
        gain = 1 + self.jitter * (2 * contrast - 1)
        shift_3 = self.jitter * (2 * torch.tensor(shift) - 1)
        noise_3ss = self.noise * torch.randn(view_3ss.shape, generator=generator)
        return (view_3ss - 0.5) * gain + 0.5 + (shift_3[:, None, None] + noise_3ss).to(view_3ss)


def _crop(
    image_3HW: torch.Tensor, size_range: tuple[float, float], scale: float, y: float, x: float
) -> torch.Tensor:
    """A square of whole pixels; scale, y and x in [0, 1) say how large and where."""
    height, width = image_3HW.shape[-2:]
    low, high = size_range
    side = max(1, round(min(height, width) * (low + (high - low) * scale)))
    top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
    return image_3HW[:, top : top + side, left : left + side]


def _resize(image_3HW: torch.Tensor, size: int) -> torch.Tensor:
    if image_3HW.shape[-2:] == (size, size):
        return image_3HW
    return F.interpolate(image_3HW[None], (size, size), mode="bilinear", antialias=True)[0]


LAWS = ("power", "cosine")

_DRAWS = (  # one uniform number each for every view, in this order
    *("side", "top", "left", "flip", "grey"),
    *("affine", "degrees", "right", "down", "scale", "shear"),
    *("perspective", *(f"corner {i}" for i in range(8))),
    *("colour", "brightness", "contrast", "saturation", "hue"),
    *("noise", "erase", "erase area", "erase shape", "erase top", "erase left"),
)

_LIMITS = {
    "degrees": (0, 180),
    "translate": (0, 1),
    "shear": (0, 80),
    "perspective": (0, 0.95),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 0.5),
    "noise": (0, 10),
    **dict.fromkeys(("p", "flip", "grey", "erase"), (0, 1)),  # probabilities
}


@dataclass(frozen=True, kw_only=True)
class Warped:
    """Views for loops that draw a picture from nothing; called like `Cutouts`, draws them.

    `overview` views show the whole picture, squashed to a square; `inner` crops follow, with a
    side of low + (high − low)·t times the shorter side of the picture, (low, high) = `size_range`.
    By the law "power" (Crowson's cut_pow, Disco Diffusion's cut_ic_pow) t = u**power with u uniform
    in [0, 1): a power above 1 favours small crops. By "cosine" t = (1 − cos(π·u**power)) / 2, which
    favours both ends.

    Each view, an overview too, is mirrored with probability `flip`. Then, each with probability `p`
    and independent of the others, it is
    - sheared by up to ± `shear` degrees, scaled by a number of the range `scale`, turned by up to
      ± `degrees` and shifted by up to ± `translate` of its side;
    - seen in perspective: its corners move inwards by up to `perspective` / 2 of its side along x
      and y, as torchvision's and kornia's distortion_scale has it;
    - recoloured: gains of 1 ± `brightness`, 1 ± `contrast` about the mean, 1 ± `saturation` of the
      chroma, and a hue turned by up to ± `hue` of a turn.
    It is greyscale with probability `grey`; with probability `erase` a rectangle of 0.1 to 0.4 of
    its area is black; and normal noise is added, whose deviation is uniform in [0, `noise`) for
    each view. Pixels are in [0, 1]; values of views may leave it.

    What a warp shows of beyond the view's edges is its `padding`: "reflection", "border" (the last
    pixels go on) or "zeros" (black). A crop larger than it is shown is first resized, with
    antialiasing, to about the size at which it is shown, then read once through one homography:
    nothing aliases. Strong perspective has one size for a whole view, the mean, so its far side
    may alias a little. At zero strength a view is `F.interpolate(antialias=True)` of its crop.
    """

    overview: int = 1
    inner: int = 15
    size_range: tuple[float, float] = (0.4, 1.0)
    law: str = "power"
    power: float = 1.0
    p: float = 0.8
    flip: float = 0.5
    degrees: float = 15.0
    translate: float = 0.1
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    perspective: float = 0.3
    padding: str = "reflection"
    brightness: float = 0.05
    contrast: float = 0.05
    saturation: float = 0.1
    hue: float = 0.02
    grey: float = 0.0
    erase: float = 0.0
    noise: float = 0.05

    def __post_init__(self) -> None:
        if min(self.overview, self.inner) < 0 or len(self) < 1:
            raise UsageError(
                f"There must be at least one view, not {self.overview} + {self.inner}."
            )
        for name, known in {"law": LAWS, "padding": warps.PADDINGS}.items():
            if (given := getattr(self, name)) not in known:
                near = close_matches(str(given), known)
                raise UsageError(f"There is no {name} of views {given!r}.{near}")
        for name, (low, high) in _LIMITS.items():
            if not low <= (given := getattr(self, name)) <= high:
                raise UsageError(f"The {name} of views lies in [{low}, {high}], not {given}.")
        if not 0 < self.size_range[0] <= self.size_range[1] <= 1:
            raise UsageError(f"A size_range of views lies in (0, 1], not {self.size_range}.")
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise UsageError(f"A scale of views is a range in [0.1, 10], not {self.scale}.")
        if not 0 < self.power < math.inf:
            raise UsageError(f"The power of views is above 0 and finite, not {self.power}.")

    @classmethod
    def vqgan_clip(cls, *, number: int = 32) -> Warped:
        """Like the VQGAN+CLIP notebooks (Crowson et al. 2022): 32 to 64 cutouts with cut_pow 1, no
        smaller than what the CLIP sees (224 of about 450 px, hence the size_range); turned by 15
        degrees and shifted by 0.1, perspective 0.7, hue and saturation 0.1, each with probability
        0.7; noise_fac 0.1. The notebook with augmentations also erases: erase=0.7."""
        return cls(
            overview=0,
            inner=number,
            size_range=(0.5, 1.0),
            p=0.7,
            flip=0.0,
            degrees=15.0,
            translate=0.1,
            perspective=0.7,
            padding="border",
            brightness=0.0,
            contrast=0.0,
            saturation=0.1,
            hue=0.1,
            noise=0.1,
        )

    @classmethod
    def disco(cls, *, overview: int = 12, inner: int = 4) -> Warped:
        """Like the cuts of Disco Diffusion 5 in the first 400 of its 1000 steps; in the others they
        are overview=4, inner=12. Inner cuts are no smaller than what the CLIP sees (224 of about
        768 px). All are flipped by half, turned by 10 degrees, shifted by 0.05, recoloured by 0.1;
        a tenth of all and a fifth of the inner cuts are grey (here 0.15 of all), and noise of 0.01
        is added three times (the same power here). Disco pads overviews, here they are squashed."""
        return cls(
            overview=overview,
            inner=inner,
            size_range=(0.3, 1.0),
            p=1.0,
            degrees=10.0,
            translate=0.05,
            perspective=0.0,
            padding="zeros",
            brightness=0.1,
            contrast=0.1,
            saturation=0.1,
            hue=0.1,
            grey=0.15,
            noise=0.03,
        )

    def __len__(self) -> int:
        """Views an image."""
        return self.overview + self.inner

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator], *, size: int
    ) -> torch.Tensor:
        """Views (B·N, 3, size, size), those of image 0 first, differentiable.

        `generators` are on the CPU, one an image: ClipguideError if they are not as many.
        """
        _check_number(generators, image_B3HW)
        wide_B3HW = image_B3HW.to(torch.promote_types(image_B3HW.dtype, torch.float32))
        pairs = zip(wide_B3HW, generators, strict=True)
        return torch.cat([self._views(*pair, size) for pair in pairs]).to(image_B3HW)

    def _views(
        self, image_3HW: torch.Tensor, generator: torch.Generator, size: int
    ) -> torch.Tensor:
        draws = (len(self), len(_DRAWS))
        drawn = torch.rand(draws, generator=generator, dtype=torch.float64).unbind(1)
        u = dict(zip(_DRAWS, drawn, strict=True))
        matrix_N33, shrink_N = self._homographies(u)
        box_N4 = self._boxes(u, *image_3HW.shape[1:])
        view_N3ss, filled_N2 = warps.cut(image_3HW, box_N4, size, shrink_N)
        view_N3ss = warps.warp(view_N3ss, filled_N2, matrix_N33, self.padding)
        view_N3ss = warps.recolour(view_N3ss, **self._colours(u))
        if self.erase:
            view_N3ss = warps.erase(view_N3ss, self._erased(u))
        if self.noise:
            noise_N3ss = torch.randn(view_N3ss.shape, generator=generator).to(view_N3ss)
            factor_N = (self.noise * u["noise"]).to(view_N3ss)
            view_N3ss = view_N3ss.addcmul(factor_N[:, None, None, None], noise_N3ss)
        return view_N3ss

    def _boxes(self, u: dict[str, torch.Tensor], height: int, width: int) -> torch.Tensor:
        """box_N4 of whole pixels: top, left, height and width."""
        low, high = self.size_range
        share_N = u["side"] ** self.power
        if self.law == "cosine":
            share_N = (1 - torch.cos(math.pi * share_N)) / 2
        side_N = min(height, width) * (low + (high - low) * share_N)
        side_N = side_N.round().clamp_min(1)
        top_N = (u["top"] * (height - side_N + 1)).floor()
        left_N = (u["left"] * (width - side_N + 1)).floor()
        box_N4 = torch.stack([top_N, left_N, side_N, side_N], 1)
        box_N4[: self.overview] = torch.tensor([0, 0, height, width]).to(box_N4)
        return box_N4

    def _homographies(self, u: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """matrix_N33 from places in a crop to where they are shown, and shrink_N >= 1: how much
        smaller they are there, from the area."""
        moved_N, low, high = u["affine"] < self.p, *self.scale
        scale_N = torch.where(moved_N, low + (high - low) * u["scale"], 1.0)
        affine_N33 = warps.affine(
            mirror_N=u["flip"] < self.flip,
            shear_N=moved_N * _about(u["shear"], self.shear),
            scale_N=scale_N,
            angle_N=moved_N * _about(u["degrees"], self.degrees),
            shift_N2=torch.stack(
                [moved_N * _about(u[way], self.translate) for way in ("right", "down")], 1
            ),
        )
        inward_N8 = torch.stack([u[f"corner {i}"] for i in range(8)], 1) * self.perspective / 2
        inward_N8 = inward_N8 * (u["perspective"] < self.p)[:, None]
        perspective_N33, area_N = warps.perspective(inward_N8.unflatten(1, (4, 2)))
        shrink_N = 1 / (scale_N * area_N.clamp_min(0.01).sqrt())
        return perspective_N33 @ affine_N33, shrink_N.clamp_min(1)

    def _colours(self, u: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        changed_N = u["colour"] < self.p
        about = {
            name: changed_N * _about(u[name], getattr(self, name))
            for name in ("brightness", "contrast", "saturation", "hue")
        }
        return {
            "brightness_N": 1 + about["brightness"],
            "contrast_N": 1 + about["contrast"],
            "saturation_N": (1 + about["saturation"]) * (u["grey"] >= self.grey),
            "hue_N": about["hue"],
        }

    def _erased(self, u: dict[str, torch.Tensor]) -> torch.Tensor:
        """box_N4 in shares of the side, of no height where nothing is erased: an area of 0.1 to
        0.4, a height of 0.3 to 1/0.3 widths, cut to the view."""
        area_N = 0.1 + 0.3 * u["erase area"]
        root_N = (math.log(0.3) * (2 * u["erase shape"] - 1) / 2).exp()  # of height / width
        height_N = (area_N.sqrt() * root_N).clamp_max(1)
        width_N = (area_N.sqrt() / root_N).clamp_max(1)
        top_N, left_N = u["erase top"] * (1 - height_N), u["erase left"] * (1 - width_N)
        return torch.stack([top_N, left_N, height_N * (u["erase"] < self.erase), width_N], 1)


def _check_number(generators: Sequence[torch.Generator], image_B3HW: torch.Tensor) -> None:
    if len(generators) != len(image_B3HW):
        raise ClipguideError(
            f"{len(image_B3HW)} images need as many generators, not {len(generators)}."
        )


def _about(u_N: torch.Tensor, most: float) -> torch.Tensor:
    """Uniform in ± most."""
    return most * (2 * u_N - 1)
