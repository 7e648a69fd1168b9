"""Views: random crops of an image, resized, mirrored and jittered.

The gradient is averaged over views, so that no single pixel grid can exploit it (cutouts: Crowson
et al. 2022, VQGAN-CLIP). All random numbers of an image's views come from the generator of that
image, in a fixed order. An image therefore has the same views in a batch and alone.

`Cutouts` are plain and fast. `Warped` views are also rotated, seen in perspective and recoloured.

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
    """The interface of views that objectives use."""

    def __len__(self) -> int: ...

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator], *, size: int
    ) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Random square crops of an image.

    Call it with images, one generator for each image, and the side of the views in pixels:
    `Cutouts()(image_B3HW, generators, size=224)`. The first view is the whole image, unless `whole`
    is False. Values of the crops may leave [0, 1].

    Args:
        number: the number of random crops, in addition to the whole image: `Cutouts(number=4)` has
            5 views.
        size_range: the side of a crop, as a fraction of the shorter side of the image.
        flip: the probability that a crop is mirrored.
        jitter: the contrast is multiplied by 1 ± `jitter`, and each channel shifted by ± `jitter`.
        noise: the standard deviation of the normal noise that is added, for pixels in [0, 1].
        whole: whether the first view is the whole image.
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
        """Return the number of views per image."""
        return self.number + self.whole

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator], *, size: int
    ) -> torch.Tensor:
        """Return the views (B·N, 3, size, size), those of image 0 first. They are differentiable.

        Args:
            image_B3HW: images in [0, 1].
            generators: one for each image, on the CPU.
            size: the side of a view, in pixels.

        Raises:
            ClipguideError: the number of generators is not that of the images.
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
    """Return a square of whole pixels. scale, y and x in [0, 1) give its size and place."""
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
    """Random views for loops that draw an image from nothing. Call it as `Cutouts`.

    The first `overview` views show the whole image, squashed to a square. The next `inner` views
    are crops with a side of low + (high − low)·t times the shorter side of the image, where (low,
    high) is `size_range`. u is uniform in [0, 1). With `law="power"` (cut_pow of Crowson,
    cut_ic_pow of Disco Diffusion), t is `u**power`. A power above 1 favours small crops. With
    `law="cosine"`, t is `(1 − cos(π · u**power)) / 2`, which favours both ends of the range.

    Each view is mirrored with probability `flip`. Then these three happen, each with probability
    `p` and independently of each other:

    - A shear of up to ± `shear` degrees, a scale in the range `scale`, a rotation of up to ±
      `degrees`, and a shift of up to ± `translate` of the side.
    - A perspective: the corners move inwards by up to `perspective` / 2 of the side along x and y,
      as distortion_scale of torchvision and kornia.
    - A change of colour: a gain of 1 ± `brightness`, 1 ± `contrast` about the mean, 1 ±
      `saturation` of the chroma, and a hue that turns by up to ± `hue` of a full turn.

    A view becomes greyscale with probability `grey`. With probability `erase`, a rectangle of 0.1
    to 0.4 of its area becomes black. Then normal noise is added, whose standard deviation is
    uniform in [0, `noise`) for each view. The pixels of the image are in [0, 1]; those of a view
    may leave it.

    `padding` fills what a warp shows from outside the view: "reflection", "border" (the last pixels
    continue) or "zeros" (black).

    A crop that is larger than its view is first resized, with antialiasing, to about the size of
    the view. It is then sampled once through one homography, which avoids aliasing. Strong
    perspective uses the mean size of a view, so its far side may alias slightly. With all strengths
    at 0, a view equals `F.interpolate(antialias=True)` of its crop.
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
        """Return views like those of the VQGAN+CLIP notebooks (Crowson et al. 2022).

        The notebooks use 32 to 64 cutouts with cut_pow 1, not smaller than the input of the CLIP.
        That is 224 of about 450 pixels, hence the size_range. A rotation of 15 degrees, a shift of
        0.1, a perspective of 0.7, and a hue and saturation of 0.1 each have probability 0.7.
        noise_fac is 0.1. The notebook with augmentations also erases, with erase=0.7.
        """
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
        """Return views like the cuts of Disco Diffusion 5 in the first 400 of its 1,000 steps.

        In the later steps, Disco Diffusion uses overview=4 and inner=12. Inner cuts are not smaller
        than the input of the CLIP, which is 224 of about 768 pixels. Half of all cuts are flipped.
        They are rotated by 10 degrees, shifted by 0.05 and recoloured by 0.1. In Disco Diffusion, a
        tenth of all cuts and a fifth of the inner cuts are grey; here, 0.15 of all. Disco Diffusion
        adds noise of 0.01 three times; here, noise of the same power is added once. Disco Diffusion
        pads overviews; here, they are squashed.
        """
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
        """Return the number of views per image."""
        return self.overview + self.inner

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator], *, size: int
    ) -> torch.Tensor:
        """Return the views (B·N, 3, size, size), those of image 0 first. They are differentiable.

        Args:
            image_B3HW: images in [0, 1].
            generators: one for each image, on the CPU.
            size: the side of a view, in pixels.

        Raises:
            ClipguideError: the number of generators is not that of the images.
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
        """Return box_N4 in whole pixels: top, left, height and width."""
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
        """Return matrix_N33 from places in a crop to places in the view, and shrink_N >= 1, the
        factor by which the warp reduces it, from the area."""
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
        """Return box_N4 in fractions of the side: an area of 0.1 to 0.4, a height of 0.3 to 1/0.3
        widths, cut to the view. The height is 0 if nothing is erased."""
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
    """Return uniform numbers in ± most."""
    return most * (2 * u_N - 1)
