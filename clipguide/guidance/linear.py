"""A linear map from latents to colours, fitted to a VAE in seconds.

It needs no image. Smooth random latents are decoded, and each image is averaged over the pixels of
a latent. Then colour = neighbouring latents · matrix + bias is solved by least squares. The
neighbouring latents are a square of 3 x 3. On the embedded autoencoder, a step along the gradient
then keeps half as much again as with the central latent alone. The random latents are sums of noise
on grids of 1, 2, 4, … cells. Each channel has mean 0 and variance 1, like the latents of a model. A
generator with a fixed seed draws them, so the map is always the same.

Shapes: N images, C channels and h x w of latents, 3 colours, H x W pixels, P = N·h·w places, k x k
latents around a place.
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

SAMPLES = 16
AROUND = 3
LARGEST = 16  # height and width of the latents that it is fitted on


@dataclass(frozen=True)
class LinearMap:
    """Return image_N3HW = bilinear(conv(latents, matrix_3Ckk) + bias_3), mostly in [0, 1].

    `r2` is the share of the variance of the colours that the map explains on the latents of the
    fit.
    """

    matrix_3Ckk: torch.Tensor
    bias_3: torch.Tensor
    scale: int  # pixels to a side of a latent
    r2: float

    def __call__(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        matrix_3Ckk, bias_3 = self.matrix_3Ckk.to(latents_NChw), self.bias_3.to(latents_NChw)
        small_N3hw = functional.conv2d(_padded(latents_NChw), matrix_3Ckk, bias_3)
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
    """Fit the map for latents of shape (C, h, w) to what `decode` makes of random ones, or of those
    handed in."""
    if latents_NChw is None:
        channels, height, width = shape
        size = min(height, LARGEST), min(width, LARGEST)
        latents_NChw = smooth(SAMPLES, (channels, *size)).to(device)
    with torch.inference_mode(False), torch.no_grad():
        image_N3HW = torch.cat([decode(latent[None]) for latent in latents_NChw])
    scale = image_N3HW.shape[-1] // latents_NChw.shape[-1]
    colour_P3 = functional.avg_pool2d(image_N3HW, scale).movedim(1, -1).flatten(0, 2)
    colour_P3 = colour_P3.cpu().double()
    around = functional.unfold(_padded(latents_NChw), AROUND)  # N, C·k·k, h·w
    around = around.movedim(1, -1).flatten(0, 1).cpu().double()
    known = torch.cat([around, torch.ones_like(around[:, :1])], 1)
    solution = torch.linalg.lstsq(known, colour_P3, driver="gelsd").solution
    rest = (colour_P3 - known @ solution).square().sum()
    spread = (colour_P3 - colour_P3.mean(0)).square().sum()
    r2 = float(1 - rest / spread.clamp_min(1e-30))
    matrix_3Ckk = solution[:-1].T.reshape(3, -1, AROUND, AROUND)
    return LinearMap(matrix_3Ckk.float(), solution[-1].float(), scale, r2)


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()


def kept(
    vae: nn.Module, what: object, shape: tuple[int, int, int], fitted: Callable[[], LinearMap]
) -> LinearMap:
    """Return the map of a live VAE, fitted once for as long as it lives with the same weights.

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
    """Draw latents_NChw of variance 1 a channel, with as much at coarse scales as at fine ones."""
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


def _padded(latents_NChw: torch.Tensor) -> torch.Tensor:
    """Return the latents with the edge repeated once on each side."""
    return functional.pad(latents_NChw, (AROUND // 2,) * 4, mode="replicate")
