"""From a denoiser's output to the picture that it means, and back.

A noisy sample is x = αx0 + σε. What a denoiser predicts of it (Salimans & Ho 2022, appendix D, for
v; Lipman et al. 2023 for flow), and its inverse:

    ε       x0 = (x − σε)/α       ε = (x − αx0)/σ
    v       x0 = αx − σv          v = (αx − x0)/σ
    flow    x0 = x − σv           v = (x − x0)/σ
    sample  x0 = model_output
    F       x0 = αd²x + σdF       F = (x0 − αd²x)/(σd)

F is EDM's (Karras et al. 2022, table 1, the last column: c_skip and c_out), where x0 has standard
deviation d and σ² + α²d² = 1; its v is −F, and d is 1 in the rows above.

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
from .schedulers import (
    EDM,
    FLOW,
    SIGMA_VP,
    TIMESTEP,
    TRIG,
    first_order,
    history,
    home,
    permute,
    row,
    stochastic,
)

__all__ = [
    "Level",
    "first_order",
    "history",
    "home",
    "level",
    "next_level",
    "permute",
    "stochastic",
]

PREDICTIONS = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "flow_prediction": "flow",
    "sample": "sample",
    "trigflow": "v",
}


@dataclass(frozen=True)
class Level:
    """One noise level: x·scale = alpha·x0 + sigma·ε, and what the denoiser predicts of it.

    `data` is the standard deviation of x0 that the denoiser was made for.
    """

    prediction: str
    alpha: float
    sigma: float
    scale: float = 1.0
    data: float = 1.0

    @property
    def noise(self) -> float:
        """How noisy, on every scheduler's scale: the angle of (alpha, sigma), 0 clean, 1 noise."""
        return math.atan2(self.sigma, self.alpha * self.data) / (math.pi / 2)

    def x0(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The clean latent that a model_output means, of sample's shape (extra channels unread)."""
        output = _widen(model_output)[:, : sample.shape[1]]
        x = _widen(sample) * self.scale
        if self.prediction == "epsilon":
            return (x - self.sigma * output) / self.alpha
        if self.prediction == "v":
            return self.data**2 * self.alpha * x - self.data * self.sigma * output
        if self.prediction == "F":
            return self.data**2 * self.alpha * x + self.data * self.sigma * output
        if self.prediction == "flow":
            return x - self.sigma * output
        return output

    def model_output(self, x0: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The model_output that means x0: the inverse of `x0`."""
        x = _widen(sample) * self.scale
        if self.prediction == "epsilon":
            return (x - self.alpha * x0) / self.sigma
        if self.prediction == "v":
            return (self.data**2 * self.alpha * x - x0) / (self.data * self.sigma)
        if self.prediction == "F":
            return (x0 - self.data**2 * self.alpha * x) / (self.data * self.sigma)
        if self.prediction == "flow":
            return (x - x0) / self.sigma
        return x0

    def move(self, model_output: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """The model_output that means x0 + delta, in its own type; extra channels pass through.

        Where nothing is noise any more, only a `sample` prediction can be moved.
        """
        factor = 1.0
        if self.prediction != "sample":
            if not self.sigma:
                return model_output
            slope = {"epsilon": -self.alpha, "F": 1 / self.data}.get(
                self.prediction, -1 / self.data
            )
            factor = slope / self.sigma
        channels = delta.shape[1]
        moved = _widen(model_output[:, :channels]) + factor * delta
        return torch.cat([moved.to(model_output.dtype), model_output[:, channels:]], dim=1)


def level(scheduler: object, timestep: int | float | torch.Tensor) -> Level:
    """The noise level of the evaluation whose output the scheduler is about to step from.

    Args:
        scheduler: one of the table, with its timesteps set.
        timestep: the entry of `timesteps` that `step` is about to be called with.
    """
    entry = row(scheduler)
    if entry.where is TIMESTEP:
        return _of_alpha(scheduler, float(scheduler.alphas_cumprod[int(timestep)]))
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    return _of_sigma(scheduler, entry.sigma(scheduler))


def next_level(scheduler: object, timestep: int | float | torch.Tensor) -> Level:
    """The noise level of the sample that a first-order step, just taken at `timestep`, led to."""
    entry = row(scheduler)
    if not first_order(scheduler):
        raise ClipguideError(
            f"{type(scheduler).__name__} is not of first order: its step at one level is not over "
            "at the next."
        )
    if entry.where is not TIMESTEP:
        return _of_sigma(scheduler, entry.sigma(scheduler))
    following = _following(scheduler, int(timestep), entry.last)
    if following >= 0:
        return _of_alpha(scheduler, float(scheduler.alphas_cumprod[following]))
    return _of_alpha(scheduler, float(getattr(scheduler, "final_alpha_cumprod", 1.0)))


def _following(scheduler: object, timestep: int, last: int) -> int:
    """The timestep of the sample after a step, as the scheduler finds it; negative is clean."""
    if hasattr(scheduler, "previous_timestep"):
        following = int(scheduler.previous_timestep(timestep))
        return last if following < 0 else following
    return timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def _of_alpha(scheduler: object, alpha_squared: float) -> Level:
    return Level(_kind(scheduler), math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))


def _of_sigma(scheduler: object, raw: float) -> Level:
    where, kind = row(scheduler).where, _kind(scheduler)
    if where is TRIG:
        return Level(kind, math.cos(raw), math.sin(raw))
    if where is FLOW or scheduler.config.get("use_flow_sigmas"):
        return Level(kind, 1 - raw, raw)
    data = scheduler.config.sigma_data if where is EDM else 1.0
    alpha = 1 / math.sqrt(data * data + raw * raw)
    return Level(kind, alpha, raw * alpha, 1.0 if where is SIGMA_VP else alpha, data)


def _kind(scheduler: object) -> str:
    """What the denoiser predicts."""
    where = row(scheduler).where
    if where is FLOW:
        return "flow"
    if where is EDM and scheduler.config.prediction_type == "epsilon":
        return "F"
    kind = PREDICTIONS.get(scheduler.config.prediction_type)
    if kind is None:
        raise ClipguideError(
            f"The prediction type {scheduler.config.prediction_type!r} cannot be steered: "
            f"{', '.join(PREDICTIONS)} can."
        )
    return kind


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
