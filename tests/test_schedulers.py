"""Whole runs of every scheduler in the table, against a denoiser that knows the data.

The data are a Gaussian of known mean and spread, so E[x0 | x] is known, and the denoiser says that,
in its own words (ε, v, flow, F). It sees what a model sees: the scaled sample and the timestep, and
it knows the noise schedule that it was "trained" on, written out here; not the scheduler's levels.

Shapes: B images, ... the rest.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math

import diffusers
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from clipguide.errors import ClipguideError
from clipguide.guidance import noise_levels, schedulers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers, with NumPy 2
    pytest.mark.filterwarnings("ignore:The `scale_model_input` function:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have tb:UserWarning"),  # torchsde
]

STEPS = 5  # divides 1000, so that timesteps are whole numbers
SHAPE = (3, 4, 2, 2)
TRAILING = {"timestep_spacing": "trailing"}
LOWEST = {"final_sigmas_type": "sigma_min"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
VP = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False, **TRAILING}),
    "DDIM parallel": ("DDIMParallelScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "DDPM parallel": ("DDPMParallelScheduler", {"clip_sample": False}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM, Runge-Kutta first": ("PNDMScheduler", {"skip_prk_steps": False}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "TCD": ("TCDScheduler", {"clip_sample": False}),
    "LMS": ("LMSDiscreteScheduler", TRAILING),
    "Euler": ("EulerDiscreteScheduler", TRAILING),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler a": ("EulerAncestralDiscreteScheduler", TRAILING),
    "Heun": ("HeunDiscreteScheduler", TRAILING),
    "Heun Karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "KDPM2": ("KDPM2DiscreteScheduler", TRAILING),
    "KDPM2 a": ("KDPM2AncestralDiscreteScheduler", TRAILING),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0, **TRAILING}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", TRAILING),
    "DPM 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", **LOWEST}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3, **TRAILING}),
    "DPM++ 1": ("DPMSolverMultistepScheduler", {"solver_order": 1, **TRAILING}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "DPM++ 3S": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "DPM++ 2S SDE": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DEIS": ("DEISMultistepScheduler", TRAILING),
    "UniPC": ("UniPCMultistepScheduler", TRAILING),
    "UniPC, of noise": ("UniPCMultistepScheduler", {"predict_x0": False, **LOWEST}),
    "SA": ("SASolverScheduler", TRAILING),
}
OTHER = {
    "EDM Euler": ("EDMEulerScheduler", {}),
    "EDM DPM++": ("EDMDPMSolverMultistepScheduler", {}),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow Euler, shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Euler SDE": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow LCM": ("FlowMatchLCMScheduler", {}),
    "flow DPM++": ("DPMSolverMultistepScheduler", FLOW),
    "flow DPM++ 2S": ("DPMSolverSinglestepScheduler", FLOW),
    "flow DEIS": ("DEISMultistepScheduler", FLOW),
    "flow UniPC": ("UniPCMultistepScheduler", FLOW),
    "flow SA": ("SASolverScheduler", FLOW),
    "SCM": ("SCMScheduler", {}),
}
ALL = {**VP, **OTHER}
# Whose last step ends elsewhere than in the denoiser's x0: PNDM takes an average of v's at several
# levels for a v at one; with flow sigmas DEIS and SA stop at their last level, not at 0.
ELSEWHERE = [(name, "v_prediction") for name in ("PNDM", "PNDM, Runge-Kutta first")]
ELSEWHERE += [("flow DEIS", None), ("flow SA", None)]
RUNS = [(case, kind) for case in VP for kind in ("epsilon", "v_prediction")]
RUNS += [(case, None) for case in OTHER]
RUNS += [("EDM Euler", "v_prediction"), ("EDM DPM++", "v_prediction")]
RUNS += [(case, "sample") for case in ("DDIM", "DDPM", "LCM", "TCD", "LMS", "Euler", "Heun")]
RUNS += [(case, "sample") for case in ("DPM++ 2M", "DPM++ 2S", "DEIS", "UniPC", "SA")]


@functools.cache
def made(case: str, kind: str | None):
    name, config = ALL[case]
    extra = {} if kind is None else {"prediction_type": kind}
    return getattr(diffusers, name)(**config, **extra)


def make(case: str, kind: str | None = None):
    scheduler = copy.deepcopy(made(case, kind))
    if case == "SCM":
        scheduler.set_timesteps(STEPS, max_timesteps=1.57, intermediate_timesteps=None)
    else:
        scheduler.set_timesteps(STEPS)
    return scheduler


def timesteps(scheduler):
    """Those that a pipeline goes through: SanaSprint leaves out the last, which is 0."""
    is_scm = type(scheduler).__name__ == "SCMScheduler"
    return scheduler.timesteps[:-1] if is_scm else scheduler.timesteps


def begin(scheduler) -> torch.Tensor:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    if type(scheduler).__name__ == "SCMScheduler":
        return noise * scheduler.config.sigma_data
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def trained(scheduler, t: float) -> tuple[float, float]:
    """(α, σ) of the timestep t in the training of a variance-preserving model; between whole
    numbers log(σ/α) is linear, as in k-diffusion."""
    config = scheduler.config
    betas = np.linspace(config.beta_start, config.beta_end, config.num_train_timesteps)
    if config.beta_schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, len(betas)) ** 2
    squared = np.cumprod(1 - betas)
    ratio = np.exp(np.interp(t, np.arange(len(betas)), np.log((1 - squared) / squared) / 2))
    return 1 / math.sqrt(1 + ratio**2), ratio / math.sqrt(1 + ratio**2)


def flow_level(scheduler, t: float) -> float:
    """σ of a flow's timestep. DPM++, DEIS, SA and UniPC tell theirs cut to whole numbers, of these
    ladders; σ = 1 is where their logarithms end."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        return t / 1000
    ladder = np.linspace(0.001, 1, STEPS + 1) if "UniPC" in name else np.linspace(0, 0.999, 6)
    return min(float(ladder[np.abs(ladder - (t + 0.5) / 1000).argmin()]), 1 - 1e-6)


def denoise(scheduler, sample, t, spread: float):
    """model_output and E[x0 | x] for data of N(mean, spread²)."""
    mean = torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(2)).double() * 0.5
    where, kind = schedulers.row(scheduler).where, scheduler.config.get("prediction_type")
    x = sample
    if hasattr(scheduler, "scale_model_input"):
        x = scheduler.scale_model_input(sample, t)
    x, t = x.double(), float(t)
    size = 1.0  # of the data
    if where is schedulers.FLOW or scheduler.config.get("use_flow_sigmas"):
        sigma = flow_level(scheduler, t)
        alpha, kind = 1 - sigma, "flow"
    elif where is schedulers.TRIG:
        size = scheduler.config.sigma_data
        alpha, sigma, x, kind = math.cos(t), math.sin(t), x / size, "v_prediction"
    elif where is schedulers.EDM:  # x is x/√(σ² + d²) here, and t is log(σ)/4
        size, raw = scheduler.config.sigma_data, math.exp(4 * t)
        total = math.sqrt(raw**2 + size**2)
        alpha, sigma = size / total, raw / total
        kind = "F" if kind == "epsilon" else "v_prediction"
    else:
        alpha, sigma = trained(scheduler, t)
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    x0 = mean + gain * (x - alpha * mean)
    noise = (x - alpha * x0) / sigma
    output = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x0,
        "F": sigma * x0 - alpha * noise,
        "flow": noise - x0,
        "sample": x0,
    }[kind]
    if where is schedulers.TRIG:
        output = output * size
    return output.float(), (x0 * size).float()


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_x0_at_every_evaluation(case, kind, spread):
    """level(…).x0 is E[x0 | x] at every evaluation of a run, second ones of a step included; with
    no spread the run ends in the data, so the denoiser speaks the scheduler's language."""
    scheduler = make(case, kind)
    sample = begin(scheduler)
    for t in timesteps(scheduler):
        output, x0 = denoise(scheduler, sample, t, spread)
        level = noise_levels.level(scheduler, t)
        tolerance = 2e-5 + 2e-6 * level.sigma / max(level.alpha, 1e-6)
        assert_close(level.x0(output, sample), x0, atol=tolerance, rtol=1e-4)
        if level.sigma > 1e-2:
            moved = level.x0(level.move(output, x0), sample)
            assert_close(moved, 2 * x0, atol=tolerance, rtol=1e-3)
        sample = scheduler.step(output, t, sample, return_dict=False)[0]
    if spread == 0 and (case, kind) not in ELSEWHERE:
        end = trained(scheduler, 0)[1] if case in VP else 1e-3
        assert_close(sample, x0, atol=6 * end, rtol=0)


def step(scheduler, output, t, sample) -> torch.Tensor:
    """Without noise where that can be said: Stable Diffusion's pipelines pass eta = 0."""
    settings = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
    return scheduler.step(output, t, sample, return_dict=False, **settings)[0]


def run(scheduler, sample, *, permuted_at: int | None = None, index_B=None, history=True):
    """A run of a model that does not know which image is which, permuted before an evaluation."""
    for i, t in enumerate(timesteps(scheduler)):
        if i == permuted_at:
            sample = sample[index_B]
            if history:
                schedulers.permute(scheduler, index_B)
        output = (0.8 * sample).tanh() - 0.3 * sample.sin()
        sample = step(scheduler, output, t, sample)
    return sample


STILL = [case for case in ALL if not schedulers.stochastic(make(case), 0.0)]


@pytest.mark.parametrize("case", STILL)
def test_permute(case):
    """A batch permuted between any two evaluations is the finished batch permuted, to the bit; and
    without what the scheduler remembers it is not, where there is something."""
    index_B = torch.tensor([2, 0, 0])  # a copy and a loss, as in resampling
    scheduler = make(case)
    finished = run(scheduler, begin(scheduler))[index_B]
    forgetful = 0
    for i in range(len(timesteps(scheduler))):
        scheduler = make(case)
        settings = {"permuted_at": i, "index_B": index_B}
        assert torch.equal(run(scheduler, begin(scheduler), **settings), finished)
        scheduler = make(case)
        other = run(scheduler, begin(scheduler), **settings, history=False)
        forgetful += not torch.equal(other, finished)
    assert bool(forgetful) == (not schedulers.first_order(scheduler))


@pytest.mark.parametrize("case", [c for c in STILL if schedulers.first_order(make(c))])
def test_first_order(case):
    """Each step of a run is that of a scheduler which has just begun there, and next_level is the
    level that it leads to."""
    scheduler = make(case)
    sample, noise = begin(scheduler), None
    for i, t in enumerate(timesteps(scheduler)):
        output, x0 = denoise(scheduler, sample, t, 0.0)
        fresh = make(case)
        if hasattr(fresh, "set_begin_index"):
            fresh.set_begin_index(i)
        there = step(fresh, output, t, sample)
        here = noise_levels.level(scheduler, t)
        noise = (sample * here.scale - here.alpha * x0) / here.sigma
        sample = step(scheduler, output, t, sample)
        assert torch.equal(there, sample)
        after = noise_levels.next_level(scheduler, t)
        expected = after.alpha * x0 + after.sigma * noise
        assert_close(sample * after.scale, expected, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("case", [c for c in ALL if c != "DPM++ SDE"])  # has its own seed
def test_stochastic(case):
    """Two generators make two images exactly where the table says that noise is drawn."""
    ends = []
    for seed in (0, 1):
        scheduler, generator = make(case), torch.Generator().manual_seed(seed)
        sample = begin(scheduler)
        takes = inspect.signature(scheduler.step).parameters
        settings = {"generator": generator} if "generator" in takes else {}
        for t in timesteps(scheduler):
            output = denoise(scheduler, sample, t, 0.5)[0]
            sample = scheduler.step(output, t, sample, **settings, return_dict=False)[0]
        ends.append(sample)
    assert torch.equal(*ends) != schedulers.stochastic(scheduler)


def test_eta_decides_where_the_pipeline_passes_it():
    assert not schedulers.stochastic(make("DDIM")) and schedulers.stochastic(make("DDIM"), 1.0)
    assert schedulers.stochastic(make("TCD")) and not schedulers.stochastic(make("TCD"), 0.0)


def test_next_level_of_a_scheduler_that_looks_back():
    scheduler = make("DPM++ 2M")
    with pytest.raises(ClipguideError, match="is not of first order"):
        noise_levels.next_level(scheduler, scheduler.timesteps[0])


def test_every_scheduler_of_stable_diffusion_is_in_the_table():
    for scheduler in diffusers.DDIMScheduler().compatibles:
        assert scheduler.__name__ in schedulers.SCHEDULERS, scheduler.__name__
    tested = {ALL[case][0] for case in ALL}
    tested |= {"DPMSolverSDEScheduler", "DDPMWuerstchenScheduler"}  # below
    assert tested == set(schedulers.SCHEDULERS)


@pytest.mark.parametrize(("scaler", "shape"), [(1.0, ()), (2.0, (3,)), (0.5, (3,))])
def test_wuerstchens_scheduler(scaler, shape):
    """It goes by a share of the way. Known x0 and ε are found again at every level, where the next
    level is the one that its step's mean leads to, and a run ends at x0."""

    def alphas(t: float) -> float:  # Nichol & Dhariwal 2021, eq. 17, bent by the scaler
        t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
        now, first = (math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t, 0))
        return min(max(now / first, 1e-4), 1 - 1e-4)

    scheduler = diffusers.DDPMWuerstchenScheduler(scaler=scaler)
    scheduler.set_timesteps(STEPS)
    x0, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    generator, sample = torch.Generator().manual_seed(1), noise
    assert schedulers.stochastic(scheduler) and schedulers.first_order(scheduler)
    for k, t in enumerate(scheduler.timesteps[:-1]):
        level = noise_levels.level(scheduler, t.expand(shape) if shape else t)
        squared = alphas(1 - k / STEPS)
        assert (level.alpha, level.sigma) == pytest.approx(
            (squared**0.5, (1 - squared) ** 0.5), abs=1e-5
        )
        made = level.alpha * x0 + level.sigma * noise
        assert_close(level.x0(noise, made), x0, atol=2e-3, rtol=0)  # by up to 100 in float32
        after = noise_levels.next_level(scheduler, t)
        assert after.alpha**2 == pytest.approx(alphas(1 - (k + 1) / STEPS), abs=1e-5)
        epsilon = (sample - level.alpha * x0) / level.sigma
        sample = scheduler.step(epsilon, t[None], sample, generator=generator).prev_sample
    assert_close(sample, x0, atol=0.05, rtol=0)  # the last level is 1e-4 from clean
