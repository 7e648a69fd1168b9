"""White noise, block by block of its spectrum.

The coefficients of white Gaussian noise in any real orthonormal basis are independent N(0, 1). The
basis here is that of Hartley, Re − Im of the Fourier transform. Its coefficients at k and −k belong
to one frequency. They are sorted by frequency and divided into blocks of about BLOCK. In a block of
n, the magnitudes of white noise have

    Σ|h| ≈ n·√(2/π),    Σh² ≈ n,

the means of a half-normal and of a chi-square distribution. `whitened` returns the nearest point at
which both hold exactly. This is the idea of GPER (Hwang & Sung, "Gradient preconditioning for
efficient and reliable reward-guided generation", ICML 2026, arXiv 2602.08646): a projection in
closed form keeps the noise in a compact set of blockwise ℓ1 and ℓ2 norms of the spectrum. The
authors of clipguide could read only the abstract of the paper. The basis, the blocks and the
formulas are their own. The nearest point with given ℓ1 and ℓ2 norms is that of Hoyer (2004,
"Non-negative matrix factorization with sparseness constraints", section 3.3).

Shapes: B samples, ... the rest of a latent's shape (C, h, w; packed L, C; C, F, h, w of a video), R
rows of M coefficients, one row for each channel of a sample.
"""

from __future__ import annotations

import math

import torch

from .precision import widen

BLOCK = 64  # coefficients
MEAN = math.sqrt(2 / math.pi)  # of |h|
ROUNDS = 20  # of Hoyer's, which end after a few


class Spectrum:
    """The blocks of the spectrum of latents of one shape.

    Args:
        shape: the shape of the latents: B, C, ... or packed, B, L, C.
        device: the device of the latents.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.shape, self.packed = shape, len(shape) == 3
        sides = shape[1:2] if self.packed else shape[2:]
        self.sides = sides or torch.Size([1])
        frequencies = torch.meshgrid(
            *(torch.fft.fftfreq(side, dtype=torch.float64) for side in self.sides), indexing="ij"
        )
        square_M = sum(f.square() for f in frequencies).flatten()
        order_M = square_M.argsort(stable=True)
        blocks = max(1, round(len(order_M) / BLOCK))
        block_M = torch.empty_like(order_M)
        block_M[order_M] = torch.arange(len(order_M)) * blocks // len(order_M)
        self.blocks, self.block_M = blocks, block_M.to(device)

    def coefficients(self, z: torch.Tensor) -> torch.Tensor:
        """Return h_RM of latents, in float32 or better."""
        x = widen(z)
        x = x.transpose(1, 2) if self.packed else x
        return _hartley(x.reshape(-1, *self.sides)).flatten(1)

    def latents(self, h_RM: torch.Tensor) -> torch.Tensor:
        """Return the latents of coefficients; Hartley's transform is its own inverse."""
        x = _hartley(h_RM.unflatten(1, self.sides))
        if not self.packed:
            return x.reshape(self.shape)
        return x.reshape(self.shape[0], self.shape[2], self.shape[1]).transpose(1, 2)

    def power(self, z: torch.Tensor) -> torch.Tensor:
        """Return the mean square of each block, over all channels of a sample: power_BK, 1 where
        white."""
        h_RM = self.coefficients(z)
        sums_RK = h_RM.new_zeros(len(h_RM), self.blocks).index_add(1, self.block_M, h_RM.square())
        size_K = torch.bincount(self.block_M, minlength=self.blocks)
        return (sums_RK / size_K).unflatten(0, (self.shape[0], -1)).mean(1)

    def whitened(self, z: torch.Tensor) -> torch.Tensor:
        """Return the nearest latents whose blocks have the norms of white noise."""
        h_RM = self.coefficients(z)
        sign_RM = torch.where(h_RM < 0, -1.0, 1.0)
        return self.latents(sign_RM * self._nearest(h_RM.abs()))

    def tangent(self, z: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the part of a step from z along which no block's norms change, to first order:
        what is normal to h and to its signs."""
        h_RM, step_RM = self.coefficients(z), self.coefficients(step)
        radial_RM = self._unit(h_RM)
        sign_RM = torch.where(h_RM < 0, -1.0, 1.0)
        sign_RM = self._unit(sign_RM - self._sum(sign_RM * radial_RM) * radial_RM)
        for normal_RM in (radial_RM, sign_RM):
            step_RM = step_RM - self._sum(step_RM * normal_RM) * normal_RM
        return self.latents(step_RM)

    def _sum(self, value_RM: torch.Tensor) -> torch.Tensor:
        """Return the sum over its block, at each coefficient."""
        sums_RK = value_RM.new_zeros(len(value_RM), self.blocks)
        return sums_RK.index_add(1, self.block_M, value_RM)[:, self.block_M]

    def _unit(self, value_RM: torch.Tensor) -> torch.Tensor:
        """Return vectors of length 1 in each block; 0 if there is only rounding error."""
        length_RM = self._sum(value_RM.square()).sqrt()
        return torch.where(length_RM > 1e-6, value_RM / length_RM.clamp_min(1e-6), 0.0)

    def _nearest(self, size_RM: torch.Tensor) -> torch.Tensor:
        """Return the nearest magnitudes, from 0, with Σ = n·MEAN and Σ² = n in each block (Hoyer
        2004): move on the plane of that sum, away from its middle; set negative ones to 0 and leave
        them out."""
        number_RM = self._sum(torch.ones_like(size_RM))
        alive_RM = torch.ones_like(size_RM)
        for _ in range(ROUNDS):
            left_RM = self._sum(alive_RM).clamp_min(1.0)
            size_RM = size_RM + (number_RM * MEAN - self._sum(size_RM * alive_RM)) / left_RM
            middle_RM = number_RM * MEAN / left_RM
            away_RM = (size_RM - middle_RM) * alive_RM
            wanted_RM = (number_RM - left_RM * middle_RM.square()).clamp_min(0.0)
            length_RM = self._sum(away_RM.square())
            scale_RM = (wanted_RM / length_RM.clamp_min(1e-20)).sqrt()
            size_RM = (middle_RM + scale_RM * away_RM) * alive_RM
            below_RM = size_RM < 0
            if not bool(below_RM.any()):
                break
            alive_RM = alive_RM * ~below_RM
            size_RM = size_RM.clamp_min(0.0)
        return size_RM


def _hartley(x_R: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal Hartley transform of each row, over all other dimensions."""
    found = torch.fft.fftn(x_R, dim=tuple(range(1, x_R.ndim)), norm="ortho")
    return found.real - found.imag
