"""The noise level of a scheduler now, and after its step.

Tensors: B images.
"""

from __future__ import annotations

import math

import torch

from ..errors import ClipguideError
from .levels import Level
from .schedulers import EDM, FLOW, SHARE, SIGMA_VP, TIMESTEP, TRIG, first_order, prediction, row


def level(scheduler: object, timestep: int | float | torch.Tensor) -> Level:
    """Return the noise level of the evaluation whose output the scheduler is about to step from.

    Args:
        scheduler: one of the table, with its timesteps set.
        timestep: the entry of `timesteps` that `step` is about to be called with.
    """
    entry = row(scheduler)
    if entry.where is TIMESTEP:
        return _of_alpha(scheduler, float(scheduler.alphas_cumprod[int(timestep)]))
    if entry.where is SHARE:
        return _of_alpha(scheduler, _of_share(scheduler, timestep))
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    return _of_sigma(scheduler, entry.sigma(scheduler))


def next_level(scheduler: object, timestep: int | float | torch.Tensor) -> Level:
    """Return the noise level of the sample that a first-order step, just taken at `timestep`, led
    to."""
    entry = row(scheduler)
    if not first_order(scheduler):
        raise ClipguideError(
            f"{type(scheduler).__name__} is not of first order: its step at one level is not over "
            "at the next."
        )
    if entry.where is SHARE:
        following = scheduler.previous_timestep(torch.as_tensor(timestep).reshape(-1))
        return _of_alpha(scheduler, _of_share(scheduler, following))
    if entry.where is not TIMESTEP:
        return _of_sigma(scheduler, entry.sigma(scheduler))
    following = _following(scheduler, int(timestep), entry.last)
    if following >= 0:
        return _of_alpha(scheduler, float(scheduler.alphas_cumprod[following]))
    return _of_alpha(scheduler, float(getattr(scheduler, "final_alpha_cumprod", 1.0)))


def _following(scheduler: object, timestep: int, last: int) -> int:
    """Return the timestep of the sample after a step, as the scheduler computes it. It is negative
    for a clean sample."""
    if hasattr(scheduler, "previous_timestep"):
        following = int(scheduler.previous_timestep(timestep))
        return last if following < 0 else following
    return timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def _of_share(scheduler: object, timestep: float | torch.Tensor) -> float:
    """Return α² at a timestep. Some pipelines pass one timestep for each sample."""
    share_1 = torch.as_tensor(timestep).reshape(-1)[:1].cpu()
    return float(scheduler._alpha_cumprod(share_1, share_1.device))


def _of_alpha(scheduler: object, alpha_squared: float) -> Level:
    return Level(prediction(scheduler), math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))


def _of_sigma(scheduler: object, raw: float) -> Level:
    where, kind = row(scheduler).where, prediction(scheduler)
    if where is TRIG:
        return Level(kind, math.cos(raw), math.sin(raw))
    if where is FLOW or scheduler.config.get("use_flow_sigmas"):
        return Level(kind, 1 - raw, raw)
    data = scheduler.config.sigma_data if where is EDM else 1.0
    alpha = 1 / math.sqrt(data * data + raw * raw)
    return Level(kind, alpha, raw * alpha, 1.0 if where is SIGMA_VP else alpha, data)
