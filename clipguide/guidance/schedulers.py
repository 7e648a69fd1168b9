"""The table of schedulers: how they keep their noise level and their history.

A row says where a scheduler keeps the noise level of the present evaluation, which tensors it
carries from step to step, whether it draws noise, which evaluations belong to one step, and how it
clips x0. The source is the code of diffusers 0.42. tests/test_schedulers.py tests each row on whole
runs. `register` adds a row for your own class.

Tensors: B images, ... the rest of a latent's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ClipguideError
from ..registry import Registry, of_class

PREDICTIONS = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "flow_prediction": "flow",
    "sample": "sample",
    "trigflow": "v",
}

# Where a scheduler keeps its noise level.
TIMESTEP = "alphas_cumprod[timestep]"
SIGMA_VP = "sigmas[step_index], of a sample that keeps its variance"
SIGMA = "sigmas[step_index], of a sample whose variance grows"
EDM = "sigmas[step_index], of a sample whose variance grows from sigma_data squared"
FLOW = "sigmas[step_index], of a straight path"
TRIG = "timesteps[step_index], an angle"
SHARE = "the timestep, from 1 to 0, by the scheduler's own formula"  # a cosine


def _at_step(scheduler: object) -> float:
    """Return the place of the level for Heun, which repeats each level in `sigmas`: the second
    evaluation of a step is at the next one."""
    return float(scheduler.sigmas[scheduler.step_index])


def _half_way(name: str, back: int) -> Callable[[object], float]:
    """Return the place for a second evaluation between two levels: entry step_index − back of
    `name`."""

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


def _begins(scheduler: object) -> bool:
    return True


def _solver_order_1(scheduler: object) -> bool:
    return scheduler.config.solver_order == 1


def _sde(scheduler: object, eta: float | None) -> bool:
    return scheduler.config.algorithm_type.startswith("sde-")


def _by_eta(default: float) -> Callable[[object, float | None], bool]:
    return lambda scheduler, eta: (default if eta is None else eta) > 0


def _by_config(scheduler: object, eta: float | None) -> bool:
    return bool(scheduler.config.stochastic_sampling)


def _first_half(scheduler: object) -> bool:
    """Return whether this is the first of two evaluations per step, as in Heun and KDPM2."""
    return scheduler.state_in_first_order


def _pndm(scheduler: object) -> bool:
    """Return whether this evaluation begins a step: Runge-Kutta steps have four. Without them, the
    first step has two."""
    if scheduler.config.skip_prk_steps:
        return scheduler.counter != 1
    runge_kutta = scheduler.counter < len(scheduler.prk_timesteps)
    return not runge_kutta or scheduler.counter % 4 == 0


@dataclass(frozen=True)
class Row:
    """What clipguide must know about a scheduler class.

    Args:
        where: where the scheduler keeps the noise level: one of the constants `TIMESTEP`, `SHARE`,
            `SIGMA`, … of `clipguide.guidance.schedulers`.
        history: the names of the attributes that it carries to the next evaluation: tensors of B
            images, or lists of them.
        first_order: a function of the scheduler that returns whether a step uses one evaluation
            and no earlier ones.
        stochastic: a function (scheduler, eta) that returns whether a step adds noise.
        sigma: a function of the scheduler that returns sigma of this evaluation.
        begins: a function of the scheduler that returns whether this evaluation is the first of its
            step.
        last: the timestep after the last step; negative if the sample is then clean.
    """

    where: str
    history: tuple[str, ...] = ()
    first_order: Callable[[object], bool] = _always
    stochastic: Callable[[object, float | None], bool] = _never
    sigma: Callable[[object], float] = _at_step
    begins: Callable[[object], bool] = _begins
    last: int = -1


_HEUN = ("prev_derivative", "sample")

_ROWS = {
    "DDIMScheduler": Row(TIMESTEP, stochastic=_by_eta(0.0)),
    "DDIMParallelScheduler": Row(TIMESTEP, stochastic=_by_eta(0.0)),
    "DDPMScheduler": Row(TIMESTEP, stochastic=_always),
    "DDPMParallelScheduler": Row(TIMESTEP, stochastic=_always),
    "DDPMWuerstchenScheduler": Row(SHARE, stochastic=_always),
    "LCMScheduler": Row(TIMESTEP, stochastic=_always),
    "TCDScheduler": Row(TIMESTEP, stochastic=_by_eta(0.3), last=0),
    "PNDMScheduler": Row(
        TIMESTEP, ("ets", "cur_sample", "cur_model_output"), _never, begins=_pndm
    ),
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
    "HeunDiscreteScheduler": Row(SIGMA, _HEUN, _never, begins=_first_half),
    "KDPM2DiscreteScheduler": Row(
        SIGMA, ("sample",), _never, _never, _half_way("sigmas_interpol", 0), _first_half
    ),
    "KDPM2AncestralDiscreteScheduler": Row(
        SIGMA, ("sample",), _never, _always, _half_way("sigmas_interpol", 1), _first_half
    ),
    "DPMSolverSDEScheduler": Row(SIGMA, ("sample",), _never, _always, _mid_point, _first_half),
    "EDMEulerScheduler": Row(EDM),
    "EDMDPMSolverMultistepScheduler": Row(EDM, ("model_outputs",), _solver_order_1, _sde),
    "FlowMatchEulerDiscreteScheduler": Row(FLOW, stochastic=_by_config),
    "FlowMatchHeunDiscreteScheduler": Row(FLOW, _HEUN, _never, begins=_first_half),
    "FlowMatchLCMScheduler": Row(FLOW, stochastic=_always),
    "SCMScheduler": Row(TRIG, stochastic=_always, sigma=_angle),
}


SCHEDULERS: Registry[Row] = Registry("scheduler", _ROWS)


def register(name: str, *, like: str | Row, replace: bool = False) -> Row:
    """Register a scheduler class under its name.

    Args:
        name: the name of the class: "MyEulerScheduler".
        like: the name of a known class that keeps its noise level and its history in the same
            attributes, such as "EulerDiscreteScheduler"; or for another kind a `Row`.
        replace: whether this entry may replace one of the same name.

    Raises:
        UsageError: the name is taken, or `like` is not the name of a known class.
    """
    entry = like if isinstance(like, Row) else SCHEDULERS.find(like)
    return SCHEDULERS.register(name, entry, replace=replace)


def row(scheduler: object) -> Row:
    """Return the row of a scheduler. Raise ClipguideError if it is not in the table."""
    found = of_class(SCHEDULERS, scheduler)
    if found is None:
        raise ClipguideError(
            f"{type(scheduler).__name__} cannot be steered yet: set the pipeline's scheduler to "
            f"one of {', '.join(SCHEDULERS)}."
        )
    return found


def check(scheduler: object) -> None:
    """Raise ClipguideError if a scheduler cannot be steered with its present settings."""
    row(scheduler)
    if scheduler.config.get("invert_sigmas"):
        raise ClipguideError(
            f"{type(scheduler).__name__} counts from clean to noise (invert_sigmas), and "
            "cannot be steered: make it from its config without that."
        )
    prediction(scheduler)


def prediction(scheduler: object) -> str:
    """Return the prediction type of the denoiser, as `Level` names it. Raise ClipguideError if it
    cannot be steered."""
    where = row(scheduler).where
    if where is FLOW:
        return "flow"
    if where is EDM and scheduler.config.prediction_type == "epsilon":
        return "F"
    said = scheduler.config.get("prediction_type", "epsilon")
    kind = PREDICTIONS.get(said)
    if kind is None:
        raise ClipguideError(
            f"The prediction type {said!r} cannot be steered: "
            f"{', '.join(PREDICTIONS)} can."
        )
    return kind


def first_order(scheduler: object) -> bool:
    """Return whether a step is one evaluation that does not depend on earlier ones. Such a step can
    be repeated, as time travel does."""
    return row(scheduler).first_order(scheduler)


def stochastic(scheduler: object, eta: float | None = None) -> bool:
    """Return whether steps draw noise. `eta` is the argument that the pipeline passes to `step`, or
    None."""
    return row(scheduler).stochastic(scheduler, eta)


def begins_step(scheduler: object) -> bool:
    """Return whether the evaluation at hand is the first of its step, not a corrector's."""
    return row(scheduler).begins(scheduler)


def clipped(scheduler: object, x0: torch.Tensor) -> torch.Tensor:
    """Return x0 as the scheduler uses it: clipped to a range if its configuration says so."""
    if scheduler.config.get("thresholding"):
        return scheduler._threshold_sample(x0)
    if scheduler.config.get("clip_sample"):
        bound = scheduler.config.get("clip_sample_range") or 1.0
        return x0.clamp(-bound, bound)
    return x0


def permute(scheduler: object, index_B: torch.Tensor) -> None:
    """Give image b the history of image index_B[b], as the caller does with its latents. It works
    between any two evaluations, also within a step."""

    def pick(value: object) -> object:
        if isinstance(value, torch.Tensor) and value.ndim:
            return value[index_B.to(value.device)]
        return [pick(item) for item in value] if isinstance(value, list) else value

    for name in row(scheduler).history:
        setattr(scheduler, name, pick(getattr(scheduler, name, None)))
