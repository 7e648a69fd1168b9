"""Embed images as unit vectors of a CLIP, view by view, and the images that they are compared with.

Shapes: B images, N views per image, S source images, 3 channels, H rows, W columns, D the width of
the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.checkpoint import checkpoint

from .. import images
from ..clip import Clip
from ..errors import UsageError
from ..views import Views
from .base import Generators, fresh_generators, times_each

_LIMIT: ContextVar[int | None] = ContextVar("views encoded at a time", default=None)

Pictures = Image.Image | torch.Tensor | Sequence[Image.Image | torch.Tensor]


@contextmanager
def views_at_a_time(number: int | None) -> Iterator[None]:
    """Return a context in which no encoder of this thread encodes more views at once. None means no
    limit."""
    token = _LIMIT.set(number)
    try:
        yield
    finally:
        _LIMIT.reset(token)


class Encoder:
    """Compute unit vectors of `views` of images, or of whole images if None.

    With `chunk`, at most this number of views is encoded at a time, and again for the gradient
    (checkpoints: Chen et al. 2016). This needs the memory of one chunk, and a third more time.
    """

    def __init__(self, clip: Clip, views: Views | None, chunk: int | None) -> None:
        if chunk is not None and chunk < 1:
            raise UsageError(f"A chunk is at least one view, not {chunk}.")
        self.clip, self.views, self.chunk = clip, views, chunk

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Generators | None = None
    ) -> torch.Tensor:
        """Return unit_BND of images in [0, 1]. It is differentiable."""
        batch = len(image_B3HW)
        if self.views is None:
            return self._encode(image_B3HW)[:, None]
        generators = generators or fresh_generators(batch)
        views = self.views(image_B3HW, generators, size=self.clip.image_size)
        return self._encode(views).unflatten(0, (batch, len(self.views)))

    def beside(
        self, image_B3HW: torch.Tensor, sources: Sources, generators: Generators | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit_BND of images, and of their sources in the same views, without a gradient."""
        batch = len(image_B3HW)
        generators = generators or fresh_generators(batch)
        same = [torch.Generator().set_state(generator.get_state()) for generator in generators]
        unit_BND = self(image_B3HW, generators)
        with torch.no_grad():
            if self.views is None:
                source_BND = sources.unit_SD(self.clip)[:, None]
                source_BND = source_BND.repeat_interleave(sources.times(batch), 0)
            else:
                source_BND = self(sources.like(image_B3HW), same)
        return unit_BND, source_BND

    def _encode(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        limits = [number for number in (self.chunk, _LIMIT.get()) if number is not None]
        if not limits:
            return self.clip.encode_image(image_B3HW)
        parts = image_B3HW.split(min(limits))
        if not torch.is_grad_enabled():
            return torch.cat([self.clip.encode_image(part) for part in parts])
        return torch.cat([self._checkpointed(part) for part in parts])

    def _checkpointed(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return checkpoint(
            self.clip.encode_image, image_B3HW, use_reentrant=False, preserve_rng_state=False
        )


class Sources:
    """Images that other images are compared with: one for all, or a list, as for prompts."""

    def __init__(self, pictures: Pictures) -> None:
        if isinstance(pictures, torch.Tensor) and pictures.ndim == 4:
            pictures = pictures.unbind()
        elif isinstance(pictures, (Image.Image, torch.Tensor)):
            pictures = [pictures]
        if not len(pictures):
            raise UsageError("There is no image to compare with.")
        self.images = [to_image(picture) for picture in pictures]
        self._unit_SD: torch.Tensor | None = None

    def times(self, batch: int) -> int:
        """Return the number of images, of `batch`, for each source."""
        return times_each(batch, len(self.images), "source images")

    def like(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the sources at the size of a batch of images, one for each."""
        resized = [
            _resize(image_3HW.to(image_B3HW), image_B3HW.shape[-2:]) for image_3HW in self.images
        ]
        return torch.stack(resized).repeat_interleave(self.times(len(image_B3HW)), 0)

    def unit_SD(self, clip: Clip) -> torch.Tensor:
        """Return the unit vectors of the whole sources. They are computed once."""
        if self._unit_SD is None:
            with torch.no_grad():
                units = [clip.encode_image(image_3HW[None])[0] for image_3HW in self.images]
            self._unit_SD = torch.stack(units)
        return self._unit_SD


def to_image(picture: Image.Image | torch.Tensor) -> torch.Tensor:
    """Return an image as image_3HW in [0, 1]. Raise UsageError if it is not one."""
    if isinstance(picture, Image.Image):
        return images.to_tensor([images.load(picture)])[0]
    if not isinstance(picture, torch.Tensor):
        raise UsageError(f"An image is a PIL image or a tensor, not {type(picture).__name__}.")
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise UsageError(f"An image's tensor is 3 x H x W, not {sides(picture)}.")
    picture = picture.detach()
    if not picture.is_floating_point() or not ((picture >= -1e-3) & (picture <= 1.001)).all():
        raise UsageError("An image's tensor holds floating-point numbers in [0, 1].")
    return picture


def sides(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _resize(image_3HW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if image_3HW.shape[-2:] == size:
        return image_3HW
    return F.interpolate(image_3HW[None], size, mode="bilinear", antialias=True)[0]
