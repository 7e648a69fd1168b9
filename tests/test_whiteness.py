"""Noise that stays white: the projection against a solver, `noise` where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from test_guidance import use
from test_methods import Brightness, settings
from torch.testing import assert_close

from clipguide.errors import UsageError
from clipguide.guidance import Noise, steer
from clipguide.guidance.calls import Calls
from clipguide.guidance.run import Gradient
from clipguide.guidance.whiteness import MEAN, Spectrum

CPU = torch.device("cpu")
SHAPES = [(2, 4, 16, 16), (1, 4, 15, 8), (2, 64, 8), (1, 3, 2, 8, 8), (1, 2, 4, 4)]


def noise(shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_orthonormal_and_its_own_inverse(shape):
    spectrum, z, other = Spectrum(torch.Size(shape), CPU), noise(shape), noise(shape, 1)
    h, g = spectrum.coefficients(z), spectrum.coefficients(other)
    assert_close((h * g).sum(), (z * other).sum())
    assert_close(spectrum.latents(h), z)


def test_the_basis_is_made_of_cosines():
    """cas(2π(k·n)) / √(HW), written out."""
    spectrum, z = Spectrum(torch.Size((1, 1, 4, 6)), CPU), noise((1, 1, 4, 6))
    n, m = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    n, m = n.double(), m.double()
    written = []
    for k in range(4):
        for j in range(6):
            angle = 2 * math.pi * (k * n / 4 + j * m / 6)
            written.append(((angle.cos() + angle.sin()) * z[0, 0]).sum() / math.sqrt(24))
    assert_close(spectrum.coefficients(z)[0], torch.stack(written))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_block_has_the_norms_of_white_noise(shape):
    spectrum = Spectrum(torch.Size(shape), CPU)
    z = spectrum.whitened(3 * noise(shape) + 0.5)
    h_RM = spectrum.coefficients(z)
    for block in range(spectrum.blocks):
        part = h_RM[:, spectrum.block_M == block]
        assert_close(part.abs().mean(1), torch.full_like(part[:, 0], MEAN))
        assert_close(part.square().mean(1), torch.ones_like(part[:, 0]))
    assert_close(spectrum.whitened(z), z)  # a projection
    assert_close(spectrum.power(z), torch.ones(shape[0], spectrum.blocks).double())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_nearest_such_point(seed):
    """Against a general solver, which begins there and elsewhere and finds none that is nearer."""
    spectrum = Spectrum(torch.Size((1, 1, 3, 3)), CPU)
    h = spectrum.coefficients(2 * noise((1, 1, 3, 3), seed) + 0.3)
    found = spectrum._nearest(h.abs())[0].numpy()
    target, n = h.abs()[0].numpy(), h.shape[1]
    constraints = [
        {"type": "eq", "fun": lambda a: a.sum() - n * MEAN},
        {"type": "eq", "fun": lambda a: (a**2).sum() - n},
    ]
    best = np.inf
    random = np.random.default_rng(seed)
    for start in [found, target, *random.random((20, n)) * 2]:
        solved = scipy.optimize.minimize(
            lambda a: ((a - target) ** 2).sum(), start, jac=lambda a: 2 * (a - target),
            bounds=[(0, None)] * n, constraints=constraints, method="SLSQP",
        )  # fmt: skip
        if solved.success:
            best = min(best, solved.fun)
    assert_close(float(((found - target) ** 2).sum()), float(best), atol=1e-5, rtol=0)


def test_a_tangent_step_changes_the_norms_to_second_order():
    spectrum = Spectrum(torch.Size((1, 4, 16, 16)), CPU)
    z = spectrum.whitened(noise((1, 4, 16, 16)))
    step = spectrum.tangent(z, noise(z.shape, 1))

    def off(length: float) -> float:
        h_RM = spectrum.coefficients(z + length * step)
        return float((spectrum._sum(h_RM.square()) - spectrum._sum(torch.ones_like(h_RM))).max())

    assert off(1e-3) / off(1e-4) == pytest.approx(100, rel=0.05)  # and not 10
    h_RM, change_RM = spectrum.coefficients(z), spectrum.coefficients(step)
    sign_RM = torch.where(h_RM < 0, -1.0, 1.0)  # some h are 0: a side of the kink
    slope_RM = spectrum._sum(sign_RM * change_RM)  # of Σ|h|
    assert float(slope_RM.abs().max()) < 1e-3 * float(spectrum._sum(change_RM.abs()).min())
    assert_close(spectrum.tangent(z, step), step)


class Given:
    """A sampler of a model that does nothing, for an objective that is linear in the noise:
    −w·z. The best white noise is the one nearest to c·w, for large c."""

    def __init__(self, w: torch.Tensor) -> None:
        self.w, self.pipe, self.losses = w, self, []

    def __call__(self, latents=None, strength=1.0):
        """Its signature is looked at."""

    def initial_noise(self, **_: object) -> torch.Tensor:
        return noise(self.w.shape, 7)

    def through(self, of, **_: object) -> Gradient:
        return Gradient(of, -(of * self.w).flatten(1).sum(1), -self.w.clone())

    def candidate(self, score_B, better_B=None) -> None:
        self.losses.append(float(-score_B))

    def sample(self, *, latents, **_: object) -> torch.Tensor:
        return latents


def smooth(shape) -> torch.Tensor:
    """A gradient as images have them: of the lowest tenth of the frequencies for the most part."""
    spectrum = Spectrum(torch.Size(shape), CPU)
    h_RM = spectrum.coefficients(noise(shape, 3))
    fall_M = torch.exp(-0.8 * spectrum.block_M.double())
    return spectrum.latents(h_RM * fall_M)


SHAPE = (1, 4, 32, 32)


def run(**options) -> tuple[torch.Tensor, list[float]]:
    sampler = Given(smooth(SHAPE))
    method = Noise(iterations=150, patience=200, momentum=0.0, **options)
    return method.call(sampler), sampler.losses


def test_the_noise_stays_white_where_a_norm_alone_does_not_keep_it_so():
    """Per block of n numbers, the power of white noise is 1 ± √(2/n). Four such errors are left
    behind in the lowest block by ReNO's prior, as its norm stays likely; none by the projection,
    and the objective falls all the same."""
    spectrum = Spectrum(torch.Size(SHAPE), CPU)
    error_K = (2 / (4 * torch.bincount(spectrum.block_M)).double()).sqrt()
    start_K = spectrum.power(noise(SHAPE, 7))[0]
    assert ((start_K - 1).abs() < 4 * error_K).all()
    white, losses = run(rate=0.05)
    assert ((spectrum.power(white)[0] - 1).abs() < error_K).all()
    assert losses[-1] < losses[0] - 0.5 * abs(losses[0])
    normed, before = run(rate=0.05, white=False, prior=10.0)
    power_K = spectrum.power(normed)[0]
    assert (power_K[0] - 1) > 20 * error_K[0]
    assert float(normed.square().mean()) == pytest.approx(1.0, abs=0.3)
    assert before[-1] < before[0]


def test_it_ends_at_the_best_white_noise_there_is():
    """Maximising w·z over a set of constant norm is projecting c·w to it: in closed form."""
    w = smooth(SHAPE)
    best = Spectrum(torch.Size(SHAPE), CPU).whitened(1e6 * w)
    found, losses = run(rate=0.2)
    assert float((found * w).sum()) > 0.97 * float((best * w).sum())
    assert -min(losses) <= float((best * w).sum()) + 1e-6


def test_renos_prior_is_the_gradient_of_its_likelihood():
    """K(z) = −(d − 1)·log‖z‖ + ‖z‖²/2 (its eq. 5), by autograd, one sample at a time."""
    z = (1.3 * noise((2, 4, 5, 3))).requires_grad_()
    length_B = z.flatten(1).norm(dim=1)
    likelihood_B = -(60 - 1) * length_B.log() + length_B.square() / 2
    (expected,) = torch.autograd.grad(likelihood_B.sum(), z)
    method = Noise(white=False, prior=0.7)
    assert_close(method._step(z.detach(), torch.zeros_like(z), None), 0.7 * expected)


def test_its_momentum_is_nesterovs():
    """As torch's own SGD has it, of the unit gradient."""
    sampler = Given(noise((1, 4, 6, 6), 2))
    found = Noise(iterations=5, rate=0.1, white=False, prior=0.0, momentum=0.8).call(sampler)
    z = noise((1, 4, 6, 6), 7).requires_grad_()
    sgd = torch.optim.SGD([z], lr=0.1, momentum=0.8, nesterov=True)
    for _ in range(5):
        z.grad = -sampler.w / sampler.w.square().mean().sqrt()
        sgd.step()
    assert_close(found, z.detach())


class Harmed(Given):
    """Its third look has a loss below all others, and a gradient that is not a number."""

    def through(self, of, **others: object) -> Gradient:
        seen = super().through(of, **others)
        if len(self.losses) < 2:
            return seen
        return Gradient(of, seen.loss_B - 1e9, seen.value * torch.nan)


def test_noise_without_a_gradient_is_not_kept():
    """Though it seems better: what has no gradient has no score that can be trusted."""
    options = {"rate": 0.1, "white": False, "prior": 0.0, "momentum": 0.0}
    w = noise((1, 4, 6, 6), 2)
    found = Noise(iterations=2, **options).call(Harmed(w))
    assert_close(found, Noise(iterations=1, **options).call(Given(w)))


def test_on_a_pipeline_it_is_white_and_lower(pipe):
    """What the last run begins from: white by the projection, and not by the norm alone."""
    use(pipe, "LCM")
    off = {}
    for white in (True, False):
        method = Noise(iterations=12, rate=0.4, patience=20, white=white)
        given = {**settings((3,), steps=1), "output_type": "latent"}
        with steer(pipe, Brightness(), method=method) as s:
            method.call(Calls(s._session), **given)
            losses = -torch.stack(s.report.candidates).flatten()
            z = s._session.first_sample / pipe.scheduler.init_noise_sigma
        assert losses.min() < losses[0]
        off[white] = float((Spectrum(z.shape, CPU).power(z) - 1).abs().max())
    assert off[True] < 0.02 < 0.2 < off[False]


def test_an_unknown_value_is_refused():
    with pytest.raises(UsageError, match="white"):
        Noise(white="very")
