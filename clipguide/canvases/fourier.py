"""The Fourier canvas: a spectrum scaled by 1/f, in decorrelated colours.

Olah et al. 2017, "Feature Visualization", section "Preconditioning and parameterization", with the
colour matrix of their library Lucid. Natural images have amplitudes of about 1/f (Field 1987), so a
step of a given length in this space changes all scales of an image equally.

Shapes: B images, 3 channels, H rows, W columns, F = W // 2 + 1 frequencies, 2 = real, imaginary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .base import Canvas, normal

# Square root of the covariance of colours over ImageNet, by Lucid; rows are RGB.
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
START = 0.01  # initial standard deviation of the spectrum
LEAST = 0.05  # smallest slope of the sigmoid for the gradient; its largest is 0.25
INSIDE = 1e-3  # margin to 0 and 1 of an encoded image, because the sigmoid does not reach them


class Fourier(Canvas):
    """The canvas image = sigmoid(colours · irfft2(spectrum / f)). It tiles without a seam."""

    def __init__(self, height: int, width: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__(height, width, generators)
        y_H1 = torch.fft.fftfreq(height)[:, None]
        x_F = torch.fft.rfftfreq(width)
        frequency_HF = (y_H1.square() + x_F.square()).sqrt()
        longer = max(height, width)
        scale_HF = (height * width) ** 0.5 / 4 / frequency_HF.clamp_min(1 / longer)
        colours_33 = torch.tensor(COLOURS)
        self.register_buffer("scale_HF", scale_HF, persistent=False)
        mix_33 = colours_33 / colours_33.norm(dim=0).max()
        self.register_buffer("mix_33", mix_33, persistent=False)
        start = START * normal((3, *scale_HF.shape, 2), generators)
        self.spectrum_B3HF2 = nn.Parameter(start)

    def decode(self) -> torch.Tensor:
        spectrum_B3HF = torch.view_as_complex(self.spectrum_B3HF2) * self.scale_HF
        plain_B3HW = torch.fft.irfft2(spectrum_B3HF, s=(self.height, self.width))
        return _Sigmoid.apply(torch.einsum("rc,bchw->brhw", self.mix_33, plain_B3HW))

    def set_(self, image_B3HW: torch.Tensor) -> None:
        logit_B3HW = image_B3HW.to(self.mix_33).logit(eps=INSIDE)
        plain_B3HW = torch.einsum("cr,brhw->bchw", torch.linalg.inv(self.mix_33), logit_B3HW)
        spectrum_B3HF = torch.fft.rfft2(plain_B3HW) / self.scale_HF
        self.spectrum_B3HF2.copy_(torch.view_as_real(spectrum_B3HF))


class _Sigmoid(torch.autograd.Function):
    """The sigmoid, with a slope of at least LEAST in the gradient: otherwise a pixel that is nearly
    black or white could not change any more."""

    @staticmethod
    def forward(ctx, logit: torch.Tensor) -> torch.Tensor:
        value = logit.sigmoid()
        ctx.save_for_backward(value)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: torch.Tensor) -> torch.Tensor:
        (value,) = ctx.saved_tensors
        return upstream * (value * (1 - value)).clamp_min(LEAST)
