"""A flow through a variance-preserving interpolant is that diffusion, step by step.

The data are N(m, s²) in each of D numbers, so that E[x0 | x] is known for every level.

Shapes: K samples of D numbers.
"""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from test_methods import Brightness
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import UsageError
from clipguide.guidance import Rollover, interpolants, steer
from clipguide.guidance.noise_levels import level, next_level
from clipguide.guidance.stochastic import spread_of, stochastic_step

MEAN, SPREAD = 0.7, 0.5


def vp(r: float) -> tuple[float, float]:
    """ᾱ and σ̄ of Song et al. 2021's VP at r, by integrating β(r) = 0.1 + 19.9 r numerically."""
    grid = torch.linspace(0, r, 20001, dtype=torch.float64)
    total = float(torch.trapezoid(0.1 + 19.9 * grid, grid))
    return math.exp(-total / 2), math.sqrt(1 - math.exp(-total))


def posterior_mean(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x0 | x], of x = αx0 + σε."""
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def flow(steps: int) -> diffusers.FlowMatchEulerDiscreteScheduler:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    assert interpolants.visit(scheduler)
    return scheduler


def drawn(steps: int, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Samples after each step: diffusers' flow scheduler, made stochastic as `rollover` does."""
    scheduler, found = flow(steps), []
    for t in scheduler.timesteps:
        here = level(scheduler, t)
        x0 = posterior_mean(x, here.alpha, here.sigma)
        velocity = (x - x0) / here.sigma
        previous = scheduler.step(velocity, t, x).prev_sample
        there = next_level(scheduler, t)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        epsilon = here.epsilon(x0, x)
        x = stochastic_step(previous, epsilon, there, spread_of(here, there, 1.0), z)
        found.append(x)
    return found


def test_levels_are_even_in_r_and_have_its_ratio_of_signal_to_noise():
    scheduler = flow(10)
    assert float(scheduler.sigmas[0]) == 1.0 and float(scheduler.sigmas[-1]) == 0.0
    for k in range(1, 10):
        alpha, sigma = vp(1 - k / 10)
        t = float(scheduler.sigmas[k])
        assert_close((1 - t) / t, alpha / sigma, rtol=1e-4, atol=1e-6)
        assert_close(float(scheduler.timesteps[k]), 1000 * t, rtol=1e-5, atol=1e-3)
    assert_close(interpolants.variance_preserving(scheduler.sigmas), scheduler.sigmas)


def test_a_run_is_that_of_the_diffusion_itself():
    """The same noise, in the coordinates x̄ = ᾱx0 + σ̄ε, by the posterior of Ho et al. 2020, eq. 7,
    of β̃ and two coefficients: x̄ is x·(ᾱ + σ̄) at each level."""
    steps = 12
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = drawn(steps, x, torch.Generator().manual_seed(1))
    generator, bar = torch.Generator().manual_seed(1), x.clone()
    for k in range(steps):
        # The first level of a flow is pure noise.
        alpha, sigma = vp(1 - k / steps) if k else (0.0, 1.0)
        after, left = vp(1 - (k + 1) / steps) if k < steps - 1 else (1.0, 0.0)
        x0 = posterior_mean(bar, alpha, sigma)
        kept = alpha**2 / after**2  # 1 − β of this step
        variance = left**2 / sigma**2 * (1 - kept)
        mean = after * (1 - kept) / sigma**2 * x0 + math.sqrt(kept) * left**2 / sigma**2 * bar
        z = torch.randn(bar.shape, generator=generator, dtype=torch.float64)
        bar = mean + math.sqrt(variance) * z
        assert_close(got[k].double() * (after + left), bar, atol=2e-4, rtol=1e-4)


def test_it_draws_from_the_data():
    """The mean at once; the deviation as steps become small, for a step takes x0 for known, which
    costs variance of first order in its size."""
    x = torch.randn(20000, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    off = []
    for steps in (40, 160):
        x0 = drawn(steps, x, torch.Generator().manual_seed(3))[-1]
        error = 4 * SPREAD / math.sqrt(len(x0))
        assert_close(float(x0.mean()), MEAN, atol=error, rtol=0)
        off.append(abs(float(x0.std()) - SPREAD))
    assert off[1] < 0.03 and off[1] < off[0] / 3


@pytest.mark.parametrize("family", ["SD3", "FLUX"])
def test_rollover_visits_them(family):
    """What the transformer of a pipeline is asked at; with its own levels, those of no steering."""
    pipe, given = tiny(family)
    given = {**given, "num_inference_steps": 4, "output_type": "pt"}
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["timestep"].flatten()[0])),
        with_kwargs=True,
    )
    scale = 1000 if family == "SD3" else 1
    visited = {}
    for name, method in (("none", None), ("own", Rollover(quota=2, interpolant="own")),
                         ("vp", Rollover(quota=2))):  # fmt: skip
        seen.clear()
        generator = torch.Generator().manual_seed(1)
        if method is None:
            pipe(**given, generator=generator)
        else:
            with steer(pipe, Brightness(), method=method):
                pipe(**given, generator=generator)
        visited[name] = sorted({round(t / scale, 4) for t in seen}, reverse=True)
    assert visited["own"] == visited["none"]
    wanted = [visited["none"][0], *(s / (a + s) for a, s in map(vp, (0.75, 0.5, 0.25)))]
    first = visited["none"][0]
    assert first == 1.0
    assert_close(visited["vp"], wanted, atol=1e-3, rtol=0)


def test_other_models_keep_their_levels():
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(5)
    before = scheduler.timesteps.clone()
    assert not interpolants.visit(scheduler)
    assert torch.equal(scheduler.timesteps, before)


def test_an_unknown_one_is_refused():
    with pytest.raises(UsageError, match="Did you mean vp"):
        Rollover(interpolant="vpp")
