"""What differs between schedulers: the one table.

Where a scheduler keeps the noise level of the evaluation at hand, what it carries from step to
step, whether it draws noise, and whether one evaluation is one step. Read from diffusers 0.42's
sources; tests/test_schedulers.py proves each row on whole runs.

Tensors: B images, ... the rest of a latent's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ClipguideError

# Where a scheduler keeps its noise level.
TIMESTEP = "alphas_cumprod[timestep]"
SIGMA_VP = "sigmas[step_index], of a sample that keeps its variance"
SIGMA = "sigmas[step_index], of a sample whose variance grows"
EDM = "sigmas[step_index], of a sample whose variance grows from sigma_data squared"
FLOW = "sigmas[step_index], of a straight path"
TRIG = "timesteps[step_index], an angle"


def _at_step(scheduler: object) -> float:
    """Heun's repeat each level in `sigmas`: its second evaluation of a step is at the next one."""
    return float(scheduler.sigmas[scheduler.step_index])


def _half_way(name: str, back: int) -> Callable[[object], float]:
    """The second evaluation of a step is between two levels: entry step_index − back of `name`."""

    def sigma(scheduler: object) -> float:
        if scheduler.state_in_first_order:
            return _at_step(scheduler)
        return float(getattr(scheduler, name)[scheduler.step_index - back])

    return sigma


def _mid_point(scheduler: object) -> float:
    if scheduler.state_in_first_order:
        return _at_step(scheduler)
    return float(scheduler.mid_point_sigma)


def _angle(scheduler: object) -> float:
    return float(scheduler.timesteps[scheduler.step_index])


def _always(scheduler: object, eta: float | None = None) -> bool:
    return True


def _never(scheduler: object, eta: float | None = None) -> bool:
    return False


def _solver_order_1(scheduler: object) -> bool:
    return scheduler.config.solver_order == 1


def _sde(scheduler: object, eta: float | None) -> bool:
    return scheduler.config.algorithm_type.startswith("sde-")


def _by_eta(default: float) -> Callable[[object, float | None], bool]:
    return lambda scheduler, eta: (default if eta is None else eta) > 0


def _by_config(scheduler: object, eta: float | None) -> bool:
    return bool(scheduler.config.stochastic_sampling)


@dataclass(frozen=True)
class Row:
    """One scheduler. `sigma` reads the level of this evaluation, `history` names the tensors of B
    images, or lists of these, that it carries to the next one; `last` is the timestep that its last
    step leads to, negative if clean."""

    where: str
    history: tuple[str, ...] = ()
    first_order: Callable[[object], bool] = _always
    stochastic: Callable[[object, float | None], bool] = _never
    sigma: Callable[[object], float] = _at_step
    last: int = -1


_HEUN = ("prev_derivative", "sample")

SCHEDULERS = {
    "DDIMScheduler": Row(TIMESTEP, stochastic=_by_eta(0.0)),
    "DDIMParallelScheduler": Row(TIMESTEP, stochastic=_by_eta(0.0)),
    "DDPMScheduler": Row(TIMESTEP, stochastic=_always),
    "DDPMParallelScheduler": Row(TIMESTEP, stochastic=_always),
    "LCMScheduler": Row(TIMESTEP, stochastic=_always),
    "TCDScheduler": Row(TIMESTEP, stochastic=_by_eta(0.3), last=0),
    "PNDMScheduler": Row(TIMESTEP, ("ets", "cur_sample", "cur_model_output"), _never),
    "DPMSolverMultistepScheduler": Row(SIGMA_VP, ("model_outputs",), _solver_order_1, _sde),
    "DPMSolverSinglestepScheduler": Row(
        SIGMA_VP, ("model_outputs", "sample"), _solver_order_1, _sde
    ),
    "DEISMultistepScheduler": Row(SIGMA_VP, ("model_outputs",), _solver_order_1),
    "UniPCMultistepScheduler": Row(SIGMA_VP, ("model_outputs", "last_sample"), _never),
    "SASolverScheduler": Row(
        SIGMA_VP, ("model_outputs", "last_sample", "last_noise"), _never, _always
    ),
    "EulerDiscreteScheduler": Row(SIGMA),
    "EulerAncestralDiscreteScheduler": Row(SIGMA, stochastic=_always),
    "LMSDiscreteScheduler": Row(SIGMA, ("derivatives",), _never),
    "HeunDiscreteScheduler": Row(SIGMA, _HEUN, _never),
    "KDPM2DiscreteScheduler": Row(
        SIGMA, ("sample",), _never, sigma=_half_way("sigmas_interpol", 0)
    ),
    "KDPM2AncestralDiscreteScheduler": Row(
        SIGMA, ("sample",), _never, _always, _half_way("sigmas_interpol", 1)
    ),
    "DPMSolverSDEScheduler": Row(SIGMA, ("sample",), _never, _always, _mid_point),
    "EDMEulerScheduler": Row(EDM),
    "EDMDPMSolverMultistepScheduler": Row(EDM, ("model_outputs",), _solver_order_1, _sde),
    "FlowMatchEulerDiscreteScheduler": Row(FLOW, stochastic=_by_config),
    "FlowMatchHeunDiscreteScheduler": Row(FLOW, _HEUN, _never),
    "FlowMatchLCMScheduler": Row(FLOW, stochastic=_always),
    "SCMScheduler": Row(TRIG, stochastic=_always, sigma=_angle),
}


def row(scheduler: object) -> Row:
    """A scheduler's row. ClipguideError if it is not in the table."""
    for base in type(scheduler).__mro__:
        if base.__name__ in SCHEDULERS:
            return SCHEDULERS[base.__name__]
    raise ClipguideError(
        f"{type(scheduler).__name__} cannot be steered yet: set the pipeline's scheduler to one of "
        f"{', '.join(SCHEDULERS)}."
    )


def home(scheduler: object) -> str:
    """Where this scheduler keeps its noise level. ClipguideError if it is not in the table."""
    return row(scheduler).where


def first_order(scheduler: object) -> bool:
    """Whether one evaluation is one step that looks at nothing before it: such a step can be
    repeated, as time travel does."""
    return row(scheduler).first_order(scheduler)


def stochastic(scheduler: object, eta: float | None = None) -> bool:
    """Whether steps draw noise. `eta` as the pipeline passes it to `step`, None if it does not."""
    return row(scheduler).stochastic(scheduler, eta)


def history(scheduler: object) -> list[str]:
    """Names of the attributes that hold tensors of B images, or lists of these, between steps."""
    return list(row(scheduler).history)


def permute(scheduler: object, index_B: torch.Tensor) -> None:
    """Make image b of what the scheduler carries that of image index_B[b], as the caller does with
    its latents. Holds between any two evaluations, half steps included."""

    def pick(value: object) -> object:
        if isinstance(value, torch.Tensor) and value.ndim:
            return value[index_B.to(value.device)]
        return [pick(item) for item in value] if isinstance(value, list) else value

    for name in history(scheduler):
        setattr(scheduler, name, pick(getattr(scheduler, name, None)))
