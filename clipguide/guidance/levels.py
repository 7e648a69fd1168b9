"""Convert the output of a denoiser to x0, and x0 to that output.

A noisy sample is x = αx0 + σε. These are the predictions of denoisers and their inverses (Salimans
& Ho 2022, appendix D, for v; Lipman et al. 2023 for flow):

    ε       x0 = (x − σε)/α       ε = (x − αx0)/σ
    v       x0 = αx − σv          v = (αx − x0)/σ
    flow    x0 = x − σv           v = (x − x0)/σ
    sample  x0 = model_output
    F       x0 = αd²x + σdF       F = (x0 − αd²x)/(σd)

F is that of EDM (Karras et al. 2022, table 1, the last column: c_skip and c_out). There x0 has the
standard deviation d, and σ² + α²d² = 1. The v of EDM is −F. d is 1 in the other rows.

Karras-type schedulers keep x/√(α² + σ²)⁻¹, so that x = x0 + σ'ε (Karras et al. 2022). `scale`
converts their sample to the convention above. All inverses are affine in x0, so a move of x0
changes the model_output by a constant times the move, and a move of 0 changes no bit.

Tensors: B images, ... the rest of a latent's shape. The computation is in float32 or more exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .precision import widen


@dataclass(frozen=True)
class Level:
    """One noise level, x·scale = alpha·x0 + sigma·ε, and the kind of prediction.

    `data` is the standard deviation of x0 for which the denoiser was made.
    """

    prediction: str
    alpha: float
    sigma: float
    scale: float = 1.0
    data: float = 1.0

    @property
    def noise(self) -> float:
        """Return how noisy it is, on every scheduler's scale: the angle of (alpha, sigma), 0 clean,
        1 noise."""
        return math.atan2(self.sigma, self.alpha * self.data) / (math.pi / 2)

    def x0(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the clean latent that a model_output means, of sample's shape (extra channels
        unread)."""
        output = widen(model_output)[:, : sample.shape[1]]
        x = widen(sample) * self.scale
        if self.prediction == "epsilon":
            return (x - self.sigma * output) / self.alpha
        if self.prediction == "v":
            return self.data**2 * self.alpha * x - self.data * self.sigma * output
        if self.prediction == "F":
            return self.data**2 * self.alpha * x + self.data * self.sigma * output
        if self.prediction == "flow":
            return x - self.sigma * output
        return output

    def epsilon(self, x0: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the noise ε of a sample whose clean latent is x0."""
        return (widen(sample) * self.scale - self.alpha * x0) / self.sigma

    def move(self, model_output: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return the model_output that means x0 + delta of the same sample, in float32 or better;
        extra channels pass through.

        At a noise level of 0, only a `sample` prediction can be moved.
        """
        if self.prediction == "sample":
            return _add(model_output, delta)
        if not self.sigma:
            return widen(model_output)
        slope = {"epsilon": -self.alpha, "F": 1 / self.data}.get(self.prediction, -1 / self.data)
        return _add(model_output, slope / self.sigma * delta)

    def move_sample(
        self, model_output: torch.Tensor, sample: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the model_output and the sample that mean x0 + delta with the same noise ε, in
        float32 or better: x·scale = α(x0 + delta) + σε."""
        slope = {
            "epsilon": 0.0,
            "v": -self.sigma / self.data,
            "F": self.sigma / self.data,
            "flow": -1.0,
            "sample": 1.0,
        }[self.prediction]
        return _add(model_output, slope * delta), widen(sample) + self.alpha / self.scale * delta


def _add(model_output: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    channels = delta.shape[1]
    moved = widen(model_output[:, :channels]) + delta
    return torch.cat([moved, model_output[:, channels:].to(moved.dtype)], dim=1)
