"""Methods that only pick, on a Gaussian whose tilted posterior is known in closed form.

The prior of x0 is N(0, 1) in each of D numbers, so that E[x0 | x_t] = α x_t. Tilted by exp(λ a·x0)
it is N(λ a, 1). An exact denoiser and diffusers' own DDIM draw from it, as a pipeline would.

Shapes: K particles, an image of 3 x 1 x 1, D = 3.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch.testing import assert_close

from clipguide.guidance import BestOf, Particles
from clipguide.guidance.levels import Level
from clipguide.guidance.methods.particles import _noises_after
from clipguide.guidance.noise_levels import level
from clipguide.guidance.resampling import RESAMPLING
from clipguide.guidance.run import At, Run
from clipguide.guidance.stochastic import spread_of, stochastic_step
from clipguide.objectives import Objective

TILT = torch.tensor([0.8, -0.4, 0.0])[:, None, None]  # a


class Linear(Objective):
    """−a·x0."""

    differentiable = False

    def __call__(self, image_B3HW, generators=None):
        return -(image_B3HW * TILT).flatten(1).sum(1)


def drawn(method, *, number: int, steps: int, seed: int = 0) -> torch.Tensor:
    """x0_K3 of one group of particles."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    streams = [torch.Generator().manual_seed(seed * number + k) for k in range(number)]
    said = []
    run = Run(
        scheduler=scheduler,
        decode=lambda x0: x0,
        objective=Linear(),
        generators=streams,
        streams=streams,
        warn=said.append,
        total=steps,
    )
    act, x = method.start(run), run.noise_like(torch.zeros(number, 3, 1, 1))
    due = 0
    for index, t in enumerate(scheduler.timesteps):
        here = level(scheduler, t)
        x0 = here.alpha * x
        epsilon = here.epsilon(x0, x)
        at = At(index, t, here, x, epsilon, here.x0(epsilon, x))
        if method.covers(here.noise):
            due += 1
            if (due - 1) % method.every == 0:
                outcome = act(at)
                epsilon, x = outcome.model_output, outcome.sample
        at = At(index, t, here, x, epsilon, here.x0(epsilon, x))
        part = method.after(run, at)
        x = part(scheduler.step(epsilon, t, x, eta=0.0).prev_sample)
    assert not said
    return x.flatten(1)


@pytest.mark.parametrize("resampling", ["systematic", "residual", "ssp"])
@pytest.mark.parametrize(
    ("potential", "rising"), [("difference", 0.0), ("difference", 0.8), ("max", 0.8), ("sum", 0.8)]
)
def test_particles_have_the_tilted_mean(potential, rising, resampling):
    """λ a within four standard errors of an effective fifth of the particles, and of variance 1.

    The potentials max and sum are given a few times only, as they were published: given at each
    step they tilt so far that few ways are left when the last one takes it back."""
    number = 2000
    method = Particles(
        number=number, potential=potential, sharpness=1.0, rising=rising, resampling=resampling,
        threshold=0.5, every=1 if potential == "difference" else 20, window=(0.02, 1.0),
    )  # fmt: skip
    x0_K3 = drawn(method, number=number, steps=64)
    error = 4 / math.sqrt(number / 5)
    assert_close(x0_K3.mean(0), TILT.flatten(), atol=error, rtol=0)
    assert_close(x0_K3.std(0), torch.ones(3), atol=0.15, rtol=0)


def test_without_weights_they_have_the_priors_mean():
    method = Particles(number=2000, sharpness=0.0, every=1)
    x0_K3 = drawn(method, number=2000, steps=64)
    assert_close(x0_K3.mean(0), torch.zeros(3), atol=4 / math.sqrt(2000), rtol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler",
                                  "FlowMatchEulerDiscreteScheduler"])  # fmt: skip
def test_the_noise_levels_that_are_left(name):
    """Seen from any evaluation, those of the evaluations after it; the scheduler stays as it is."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(7)
    x = torch.zeros(1, 3, 1, 1)
    run = Run(scheduler=scheduler, decode=None, objective=None, generators=[], streams=[],
              warn=None, total=7)  # fmt: skip
    seen, foretold = [], []
    for index, t in enumerate(scheduler.timesteps):
        here = level(scheduler, t)
        seen.append(here.noise)
        foretold.append(_noises_after(run, At(index, t, here, x, x, x)))
        scheduler.step(x, t, x)
    for index, ahead in enumerate(foretold):
        assert_close(ahead, seen[index + 1 :])


def test_the_stochastic_step_of_a_sample_whose_variance_grows():
    """The same step in either convention: a sampler that holds x / scale gets it divided by it."""
    here, there = Level("epsilon", 0.6, 0.8), Level("epsilon", 0.8, 0.6)
    generator = torch.Generator().manual_seed(0)
    x, noise, z = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(3))
    spread = spread_of(here, there, 0.7)
    plain = stochastic_step(x, noise, there, spread, z)
    grown = Level("epsilon", 0.8, 0.6, scale=0.8)
    assert_close(stochastic_step(x / 0.8, noise, grown, spread, z) * 0.8, plain)
    assert_close(plain, x + (math.sqrt(0.36 - spread**2) - 0.6) * noise + spread * z)


def test_the_factor_rises_as_das_has_it():
    """(1 + γ)^k − 1 after k evaluations, of the γ with which it is 1 at the share ρ; then 1."""
    method, total = Particles(rising=0.5), 20
    gamma = 2 ** (1 / 10) - 1
    found = [method.factor(index, total) for index in range(total)]
    assert_close(found[:10], [(1 + gamma) ** k - 1 for k in range(1, 11)])
    assert found[9] == pytest.approx(1.0) and found[10:] == [1.0] * 10
    assert Particles().factor(0, total) == 1.0


class Normal:
    """A sampler of images of one number of N(0, 1), and their value; a preview is of half of it and
    of noise of its own."""

    pipe = None

    def sample(self, *, generator, by=None):
        value = [torch.randn(1, generator=one, dtype=torch.float64) for one in generator]
        return SimpleNamespace(images=torch.cat(value)[:, None, None, None])

    def preview(self, *, until, by, generator):
        seen = self.sample(generator=generator).images.flatten()
        return seen + torch.randn(seen.shape, generator=generator[0], dtype=torch.float64)

    def rank(self, image):
        return image.flatten()

    def candidate(self, score_B, better_B=None):
        pass


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (BestOf(number=2), 1 / math.sqrt(math.pi)),
        (BestOf(number=4), 1.02938),  # of 4 of N(0, 1), the mean of the largest
        (BestOf(number=4, finish=1), 1.02938 / math.sqrt(2)),  # by a preview correlated by 1/√2
    ],
    ids=lambda value: str(getattr(value, "finish", "")),
)
def test_best_of_has_the_mean_of_the_largest(method, expected):
    """Within four standard errors: candidates are independent, and the best is kept of each."""
    number = 3000
    generators = [torch.Generator().manual_seed(seed) for seed in range(number)]
    kept = method.call(Normal(), generator=generators).images.flatten()
    error = float(kept.std()) / math.sqrt(number)
    assert_close(float(kept.mean()), expected, atol=4 * error, rtol=0)


# ------------------------------------------------------------ resampling
@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling_is_unbiased(name):
    """Each particle comes K·w times in the mean; of systematic and SSP always within one of that,
    of residual at least ⌊K·w⌋ times."""
    weight = torch.tensor([0.41, 0.27, 0.18, 0.09, 0.05, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = torch.stack(
        [torch.bincount(RESAMPLING[name](weight, generator), minlength=6) for _ in range(6000)]
    ).double()
    share = 6 * weight
    error = 4 * counts.std(0).clamp_min(1e-9) / math.sqrt(6000) + 1e-9
    assert ((counts.mean(0) - share).abs() <= error).all()
    assert (counts.sum(1) == 6).all() and not counts[:, 5].any()
    assert (counts >= share.floor()).all()
    if name != "residual":
        assert (counts <= share.ceil()).all()


@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling_of_whole_shares_and_of_one(name):
    generator = torch.Generator().manual_seed(1)
    whole = RESAMPLING[name](torch.tensor([0.5, 0.25, 0.25, 0.0]).double(), generator)
    assert torch.bincount(whole, minlength=4).tolist() == [2, 1, 1, 0]
    one = RESAMPLING[name](torch.tensor([0.0, 0.0, 1.0]).double(), generator)
    assert one.tolist() == [2, 2, 2]
    alike = RESAMPLING[name](torch.full((5,), 0.2).double(), generator)
    assert sorted(alike.tolist()) == list(range(5))
