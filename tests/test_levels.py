"""Levels and the table of schedulers against what diffusers itself computes."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from torch.testing import assert_close

from clipguide.errors import ClipguideError
from clipguide.guidance import noise_levels
from clipguide.guidance.levels import Level

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

STEPS = 12
SHAPE = (2, 4, 8, 8)
CASES = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM trailing": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing", "beta_schedule": "scaled_linear"},
    ),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
PAIRS = [(case, kind) for case in CASES for kind in ("epsilon", "v_prediction")]
CASES["DDIM zero SNR"] = (  # as the embedded generator's: ends in pure noise, where ε says nothing
    "DDIMScheduler",
    {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
)
PAIRS.append(("DDIM zero SNR", "v_prediction"))
FLOWS = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow DPM++": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "flow UniPC": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
}


def make(name: str, **config):
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(STEPS)
    return scheduler


def pictures(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def noised(scheduler, x0, noise, t):
    """add_noise as a pipeline calls it: of the timestep `t`, before the step."""
    return scheduler.add_noise(x0, noise, t[None].expand(len(x0)))


def exact_output(kind: str, scheduler, x0, noise, t):
    """What a perfect denoiser says: ε, or v = α·ε − σ·x0 where α² + σ² = 1 (Salimans & Ho 2022).

    α and σ in proportion to what add_noise weighs the two with.
    """
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    angle = torch.atan2(noised(scheduler, zero, one, t), noised(scheduler, one, zero, t))
    return noise if kind == "epsilon" else float(angle.cos()) * noise - float(angle.sin()) * x0


@pytest.mark.parametrize(("case", "kind"), PAIRS)
def test_x0_of_add_noise(case, kind):
    """x0 is found again in what the scheduler's own add_noise made of it, at every step."""
    name, config = CASES[case]
    scheduler = make(name, prediction_type=kind, **config)
    for i, t in enumerate(scheduler.timesteps.unique().flip(0)):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None
        x0, noise = pictures(i)
        x = noised(scheduler, x0, noise, t)
        level = noise_levels.level(scheduler, t)
        output = exact_output(kind, scheduler, x0, noise, t)
        tolerance = 1e-5 if kind != "epsilon" else 1e-5 + 4e-6 / level.alpha  # x0 is (x − σε)/α
        assert_close(level.x0(output, x), x0, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("case", FLOWS)
def test_x0_of_flow(case):
    """The straight path x = (1 − σ)x0 + σε, written out here."""
    name, config = FLOWS[case]
    scheduler = make(name, **config)
    for i, t in enumerate(scheduler.timesteps):
        scheduler._step_index = None
        x0, noise = pictures(i)
        sigma = float(scheduler.sigmas[i])
        x = (1 - sigma) * x0 + sigma * noise
        level = noise_levels.level(scheduler, t)
        assert_close(level.x0(noise - x0, x), x0, atol=1e-5, rtol=1e-5)
        assert level.noise == pytest.approx(2 / math.pi * math.atan2(sigma, 1 - sigma))


@pytest.mark.parametrize(("case", "kind"), PAIRS)
def test_x0_is_what_the_scheduler_computes(case, kind):
    """Through a whole run of random outputs: pred_original_sample, or convert_model_output."""
    name, config = CASES[case]
    scheduler = make(name, prediction_type=kind, **config)
    sample = pictures(0)[0] * scheduler.init_noise_sigma
    seen = 0
    for i, t in enumerate(scheduler.timesteps):
        sample = scheduler.scale_model_input(sample, t) * 0 + sample
        output = pictures(i)[1]
        level = noise_levels.level(scheduler, t)
        expected = None
        if hasattr(scheduler, "convert_model_output"):
            expected = scheduler.convert_model_output(output, sample=sample)
        step = scheduler.step(output, t, sample)
        expected = getattr(step, "pred_original_sample", expected)
        if expected is not None:
            seen += 1
            size = float(expected.abs().max())
            assert_close(level.x0(output, sample), expected, atol=3e-5 * size, rtol=1e-4)
        sample = step.prev_sample
    assert seen == len(scheduler.timesteps) or name in ("PNDMScheduler", "LCMScheduler")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_inverse(name, kind):
    """x0(move(m, d)) = x0(m) + d, and there and back is nothing, in float64."""
    scheduler = make(name, prediction_type=kind)
    for i, t in enumerate(scheduler.timesteps[::3]):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None
        output, sample = (tensor.double() for tensor in pictures(i))
        delta = pictures(i + 1)[0].double()
        level = noise_levels.level(scheduler, t)
        x0 = level.x0(output, sample)
        moved = level.move(output, delta)
        assert_close(level.x0(moved, sample), x0 + delta, atol=1e-9, rtol=1e-9)
        assert_close(level.move(moved, -delta), output, atol=1e-9, rtol=1e-9)
        moved, shifted = level.move_sample(output, sample, delta)
        assert_close(level.x0(moved, shifted), x0 + delta, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("data", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["epsilon", "v", "F", "flow", "sample"])
def test_inverse_of_every_prediction(kind, data):
    """The same for all kinds, of x0 with another deviation where a kind knows one."""
    if kind == "flow":
        level = Level(kind, 0.4, 0.6)
    else:
        level = Level(kind, 0.8 / data, 0.6, scale=0.7, data=data)  # σ² + α²d² = 1
    output, sample = (tensor.double() for tensor in pictures(0))
    delta = pictures(1)[0].double()
    x0 = level.x0(output, sample)
    assert_close(level.x0(level.move(output, delta), sample), x0 + delta)
    moved, shifted = level.move_sample(output, sample, delta)
    assert_close(level.x0(moved, shifted), x0 + delta)
    assert_close(level.epsilon(x0 + delta, shifted), level.epsilon(x0, sample))  # the noise stays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_moving_by_nothing_changes_no_bit(dtype):
    scheduler = make("DDIMScheduler")
    output = pictures(0)[0].to(dtype)
    for t in scheduler.timesteps:
        level = noise_levels.level(scheduler, t)
        moved = level.move(output, torch.zeros(SHAPE))
        assert moved.dtype == torch.float32  # a move is not rounded before the scheduler's step
        assert torch.equal(moved.to(dtype), output)


def test_variance_channels_pass_through():
    output = torch.cat(pictures(0), dim=1)
    level = noise_levels.level(make("DDPMScheduler"), 500)
    moved = level.move(output, torch.ones(SHAPE))
    assert torch.equal(moved[:, 4:], output[:, 4:])
    assert not torch.equal(moved[:, :4], output[:, :4])
    assert level.x0(output, pictures(1)[0]).shape == SHAPE


def test_noise_falls_from_1_to_0():
    for name, config in CASES.values():
        scheduler = make(name, **config)
        levels = []
        for t in scheduler.timesteps.unique().flip(0):
            if hasattr(scheduler, "_step_index"):
                scheduler._step_index = None
            levels.append(noise_levels.level(scheduler, t).noise)
        assert levels == sorted(levels, reverse=True)
        assert 1 >= levels[0] > 0.9
        assert 0 <= levels[-1] < 0.25


def test_scheduler_that_is_not_in_the_table():
    scheduler = make("CMStochasticIterativeScheduler")
    with pytest.raises(ClipguideError, match="CMStochasticIterativeScheduler cannot be steered"):
        noise_levels.level(scheduler, scheduler.timesteps[0])


def test_prediction_that_is_not_in_the_table():
    scheduler = make("DDIMScheduler")
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ClipguideError, match="'score' cannot be steered"):
        noise_levels.level(scheduler, 10)
