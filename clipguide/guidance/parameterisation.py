"""From a denoiser's output to the picture that it means, and back: the one table of schedulers.

A noisy sample is x = αx0 + σε. What a denoiser predicts of it (Salimans & Ho 2022, appendix D, for
v; Lipman et al. 2023 for flow), and its inverse:

    ε       x0 = (x − σε)/α       ε = (x − αx0)/σ
    v       x0 = αx − σv          v = (αx − x0)/σ
    flow    x0 = x − σv           v = (x − x0)/σ
    sample  x0 = model_output

Karras-type schedulers hold x/√(α² + σ²)⁻¹, so that x = x0 + σ'ε (Karras et al. 2022): `scale` takes
their sample back to the convention above. All inverses are affine in x0, so a move of x0 becomes a
move of the model_output by a constant factor: a move of nothing changes no bit.

Tensors: B images, ... the rest of a latent's shape. Computed in float32 or better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import ClipguideError

# Where a scheduler keeps its noise level.
TIMESTEP = "alphas_cumprod[timestep]"
SIGMA_VP = "sigmas[step_index], of a sample that keeps its variance"
SIGMA = "sigmas[step_index], of a sample whose variance grows"
FLOW = "sigmas[step_index], of a straight path"

SCHEDULERS = {
    "DDIMScheduler": TIMESTEP,
    "DDPMScheduler": TIMESTEP,
    "LCMScheduler": TIMESTEP,
    "PNDMScheduler": TIMESTEP,
    "DPMSolverMultistepScheduler": SIGMA_VP,
    "UniPCMultistepScheduler": SIGMA_VP,
    "EulerAncestralDiscreteScheduler": SIGMA,
    "EulerDiscreteScheduler": SIGMA,
    "FlowMatchEulerDiscreteScheduler": FLOW,
}
PREDICTIONS = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "flow_prediction": "flow",
    "sample": "sample",
}


@dataclass(frozen=True)
class Level:
    """One noise level: x·scale = alpha·x0 + sigma·ε, and what the denoiser predicts of it."""

    prediction: str
    alpha: float
    sigma: float
    scale: float = 1.0

    @property
    def noise(self) -> float:
        """How noisy, on every scheduler's scale: the angle of (alpha, sigma), 0 clean, 1 noise."""
        return math.atan2(self.sigma, self.alpha) / (math.pi / 2)

    def x0(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The clean latent that a model_output means, of sample's shape (extra channels unread)."""
        output = _widen(model_output)[:, : sample.shape[1]]
        x = _widen(sample) * self.scale
        if self.prediction == "epsilon":
            return (x - self.sigma * output) / self.alpha
        if self.prediction == "v":
            return self.alpha * x - self.sigma * output
        if self.prediction == "flow":
            return x - self.sigma * output
        return output

    def model_output(self, x0: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The model_output that means x0: the inverse of `x0`."""
        x = _widen(sample) * self.scale
        if self.prediction == "epsilon":
            return (x - self.alpha * x0) / self.sigma
        if self.prediction == "v":
            return (self.alpha * x - x0) / self.sigma
        if self.prediction == "flow":
            return (x - x0) / self.sigma
        return x0

    def move(self, model_output: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """The model_output that means x0 + delta, in its own type; extra channels pass through."""
        slope = {"epsilon": -self.alpha, "v": -1.0, "flow": -1.0}.get(self.prediction)
        factor = 1.0 if slope is None else slope / self.sigma
        channels = delta.shape[1]
        moved = _widen(model_output[:, :channels]) + factor * delta
        return torch.cat([moved.to(model_output.dtype), model_output[:, channels:]], dim=1)


def home(scheduler: object) -> str:
    """Where this scheduler keeps its noise level. ClipguideError if it is not in the table."""
    for base in type(scheduler).__mro__:
        if base.__name__ in SCHEDULERS:
            return SCHEDULERS[base.__name__]
    raise ClipguideError(
        f"{type(scheduler).__name__} cannot be steered yet: set the pipeline's scheduler to one of "
        f"{', '.join(SCHEDULERS)}."
    )


def level(scheduler: object, timestep: int | float | torch.Tensor) -> Level:
    """The noise level of the step that the scheduler is about to take at `timestep`."""
    where = home(scheduler)
    if where is TIMESTEP:
        alpha_squared = float(scheduler.alphas_cumprod[int(timestep)])
        alpha, sigma, scale = math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared), 1.0
    else:
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        raw = float(scheduler.sigmas[scheduler.step_index])
        if where is FLOW or scheduler.config.get("use_flow_sigmas"):
            alpha, sigma, scale = 1 - raw, raw, 1.0
        else:
            alpha = 1 / math.sqrt(1 + raw * raw)
            sigma, scale = raw * alpha, alpha if where is SIGMA else 1.0
    kind = "flow" if where is FLOW else PREDICTIONS.get(scheduler.config.prediction_type)
    if kind is None:
        raise ClipguideError(
            f"The prediction type {scheduler.config.prediction_type!r} cannot be steered: "
            f"{', '.join(PREDICTIONS)} can."
        )
    return Level(kind, alpha, sigma, scale)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
