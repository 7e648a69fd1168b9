"""Views: crops of a picture, resized, mirrored and jittered, each drawn from its own generator.

A gradient averaged over views is one that no single pixel grid can exploit (cutouts: Crowson et al.
2022, VQGAN-CLIP). All numbers of an image's views come from that image's generator, in a fixed
order, so an image has the same views in a batch and alone.

Shapes: B images, N views an image, 3 channels, H rows, W columns, s the side of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .errors import ClipguideError, UsageError


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
        if len(generators) != len(image_B3HW):
            raise ClipguideError(
                f"{len(image_B3HW)} images need as many generators, not {len(generators)}."
            )
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
