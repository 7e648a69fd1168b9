"""A linear map from latents to colours, fitted to a VAE in seconds.

Nothing is encoded, and no image is needed: smooth random latents are decoded, each image is
averaged over the pixels of a latent, and colour = latent · matrix + bias is solved by least
squares. The random latents are sums of noise on grids of 1, 2, 4, … cells, each channel of mean 0
and variance 1 as a model's latents are; one seeded generator draws them, so the map repeats.

Shapes: N images, C channels and h x w of latents, 3 colours, H x W pixels, P = N·h·w places.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .weights import located

SAMPLES = 8
LARGEST = 16  # height and width of the latents that it is fitted on


@dataclass(frozen=True)
class LinearMap:
    """image_N3HW = bilinear(latents · matrix_C3 + bias_3), in [0, 1] but for what it overshoots.

    `r2` is the share of the variance of colours that it explains on the latents it was fitted to.
    """

    matrix_C3: torch.Tensor
    bias_3: torch.Tensor
    scale: int  # pixels to a side of a latent
    r2: float

    def __call__(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        matrix_C3, bias_3 = self.matrix_C3.to(latents_NChw), self.bias_3.to(latents_NChw)
        small_N3hw = torch.einsum("nchw,cd->ndhw", latents_NChw, matrix_C3)
        small_N3hw = small_N3hw + bias_3.view(1, 3, 1, 1)
        return functional.interpolate(
            small_N3hw, scale_factor=self.scale, mode="bilinear", align_corners=False
        )


def fit(
    decode: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    *,
    latents_NChw: torch.Tensor | None = None,
) -> LinearMap:
    """Return the map for latents of shape (C, h, w), fitted to what `decode` makes of random
    latents, or of given ones."""
    if latents_NChw is None:
        channels, height, width = shape
        size = min(height, LARGEST), min(width, LARGEST)
        latents_NChw = smooth(SAMPLES, (channels, *size)).to(device)
    with torch.inference_mode(False), torch.no_grad():
        image_N3HW = torch.cat([decode(latent[None]) for latent in latents_NChw])
    scale = image_N3HW.shape[-1] // latents_NChw.shape[-1]
    colour_P3 = _places(functional.avg_pool2d(image_N3HW, scale))
    latent_PC = _places(latents_NChw)
    one_P1 = torch.ones_like(latent_PC[:, :1])
    known = torch.cat([latent_PC, one_P1], 1)
    solution = torch.linalg.lstsq(known, colour_P3, driver="gelsd").solution
    rest = (colour_P3 - known @ solution).square().sum()
    spread = (colour_P3 - colour_P3.mean(0)).square().sum()
    r2 = float(1 - rest / spread.clamp_min(1e-30))
    return LinearMap(solution[:-1].float(), solution[-1].float(), scale, r2)


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()


def kept(
    vae: nn.Module, what: object, shape: tuple[int, int, int], fitted: Callable[[], LinearMap]
) -> LinearMap:
    """The map of a live VAE, fitted once for as long as it lives with the same weights.

    Args:
        vae: the live one; it is told from another, and from itself after training, by its vectors:
            biases, and the weights of norms.
        what: all else that the map depends on.
        shape: (C, h, w) of the latents.
        fitted: makes the map.
    """
    found = _KEPT.setdefault(vae, {})
    key = what, shape[0], *(min(side, LARGEST) for side in shape[1:])
    digest = _digest(vae)
    if key not in found or found[key][0] != digest:
        found[key] = digest, fitted()
    return found[key][1]


def _digest(vae: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, (size, read) in sorted(located(vae).items()):
        if size == 1:
            digest.update(name.encode() + read().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def smooth(number: int, shape: tuple[int, int, int], *, seed: int = 0) -> torch.Tensor:
    """Return latents_NChw with variance 1 per channel, with equal power at coarse and fine scales.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    total = torch.zeros(number, *shape)
    cells = 1
    while cells <= max(height, width):
        grid = min(cells, height), min(cells, width)
        noise = torch.randn(number, channels, *grid, generator=generator)
        total += functional.interpolate(noise, (height, width), mode="bicubic")
        cells *= 2
    deviation_C = total.transpose(0, 1).flatten(1).std(1)
    return total / deviation_C.view(1, -1, 1, 1)


def _places(x_NChw: torch.Tensor) -> torch.Tensor:
    """Return x_PC on the CPU in float64."""
    return x_NChw.movedim(1, -1).flatten(0, 2).cpu().double()
