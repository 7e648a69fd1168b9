"""Rollover budget forcing: its budget to the evaluation, its proposals, its marginals."""

from __future__ import annotations

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from clipguide.pipelines.generation import method_of, recipe_options
from test_guidance import draw, use
from test_methods import Brightness
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import Particles, Rollover, steer
from clipguide.guidance.levels import Level
from clipguide.guidance.methods.rollover import _State
from clipguide.guidance.run import At, Run
from clipguide.objectives import Objective, as_objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def counted(pipe) -> list:
    """Timesteps of the denoiser's evaluations from now on."""
    seen = []
    pipe.unet.register_forward_hook(lambda module, args, out: seen.append(float(args[1])))
    return seen


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler"])
def test_a_run_costs_its_budget_and_ends_lower(pipe, scheduler):
    use(pipe, scheduler)
    plain = draw(pipe, steps=6)
    seen = counted(pipe)
    images = []
    for _ in range(2):
        with steer(pipe, Brightness(), method=Rollover(quota=3)) as s:
            images.append(draw(pipe, steps=6))
    assert len(seen) == 2 * 3 * 6 and seen[:18] == seen[18:]
    assert seen[:18] == sorted(seen[:18], reverse=True) and len(set(seen)) == 6
    assert torch.equal(*images)
    assert (Brightness()(images[0]) < Brightness()(plain)).all()
    rewards = torch.stack([-step.loss_B for step in s.report.trace])
    assert len(rewards) == 18 and rewards[-1].isfinite().all()
    assert torch.equal(draw(pipe, steps=6), plain)


class Never(Objective):
    """Worse at every look, so that no proposal is better: every quota is spent."""

    def __init__(self):
        self.looks = 0

    def __call__(self, image_B3HW, generators=None):
        self.looks += 1
        return (0 * image_B3HW).flatten(1).sum(1) + self.looks


class Always(Never):
    """Better at every look: every step takes its first proposal, and the last has all the rest."""

    def __call__(self, image_B3HW, generators=None):
        return -super().__call__(image_B3HW)


def test_what_is_left_rolls_over(pipe):
    use(pipe, "DDIM")
    seen = counted(pipe)
    with steer(pipe, Always(), method=Rollover(quota=3)):
        draw(pipe, steps=5)
    each = [seen.count(t) for t in sorted(set(seen), reverse=True)]
    assert each == [1, 1, 1, 1, 11]
    seen.clear()
    with steer(pipe, Never(), method=Rollover(quota=3)):
        draw(pipe, steps=5)
    each = [seen.count(t) for t in sorted(set(seen), reverse=True)]
    assert each == [1, 5, 3, 3, 3]


def test_each_image_takes_its_own_first_better_proposal():
    """Rewards to beat: 1 and 1. The first image's second proposal beats it, then a still better one
    comes too late; the second image's never does, and its best, the third, is taken."""
    state = _State(quota=4, best_B=torch.tensor([1.0, 1.0]))
    proposals = [(0.5, 0.1), (1.5, 0.2), (9.0, 0.9), (2.0, 0.3)]
    for k, rewards in enumerate(proposals):
        value = torch.full((2, 3), float(k))
        state.see(At(k, 0, None, value, 10 + value, value), torch.tensor(rewards))
    assert state.sample[:, 0].tolist() == [1.0, 2.0]
    assert state.model_output[:, 0].tolist() == [11.0, 12.0]
    assert_close(state.reward_B, torch.tensor([1.5, 0.9]))
    assert state.taken_B.tolist() == [True, False]
    state.advance(quota=4)
    assert (state.quota, state.step, state.tries) == (4, 1, 0)
    assert_close(state.best_B, torch.tensor([1.5, 1.0]))


@pytest.mark.parametrize("family", ["FLUX", "SD3"])
def test_flows(family):
    pipe, given = tiny(family)
    given = {**given, "num_inference_steps": 4, "output_type": "pt"}
    plain = pipe(**given, generator=torch.Generator().manual_seed(1)).images
    with steer(pipe, Brightness(), method=Rollover(quota=3)) as s:
        image = pipe(**given, generator=torch.Generator().manual_seed(1)).images
    assert len(s.report.trace) == 12 and image.isfinite().all()
    last = [-x.loss_B for x in s.report.trace if x.noise == s.report.trace[-1].noise]
    final_B = -Brightness()(image)
    assert len(last) >= 3
    assert_close(final_B, torch.stack(last).amax(0), atol=5e-3, rtol=0)
    assert torch.equal(pipe(**given, generator=torch.Generator().manual_seed(1)).images, plain)


def test_what_it_refuses(pipe):
    use(pipe, "Euler a")
    with pytest.raises(ClipguideError, match="noise of its own"), steer(
        pipe, Brightness(), method="rollover"
    ):
        pass
    use(pipe, "DPM++ 2M")
    with pytest.raises(ClipguideError, match="first-order"), steer(
        pipe, Brightness(), method="rollover"
    ):
        pass
    for wrong in ({"quota": 1}, {"eta": 0}, {"eta": 1.5}, {"every": 2}, {"window": (0.2, 0.8)}):
        with pytest.raises(UsageError):
            Rollover(**wrong)


def test_proposals_around_a_better_mean(pipe):
    """With a strength each step is decided for once, and moved once; the images are better still.
    Without one no gradient is taken, so that a reward without any will do."""
    use(pipe, "DDIM")
    losses, moved = {}, {}
    for strength in (0.0, 0.3):
        with steer(pipe, Brightness(), method=Rollover(quota=3, strength=strength)) as s:
            image = draw(pipe, steps=6)
        losses[strength] = Brightness()(image)
        moved[strength] = [step.gradient_B is not None for step in s.report.trace]
    assert (losses[0.3] < losses[0.0]).all()
    assert not any(moved[0.0]) and 5 <= sum(moved[0.3]) <= 6  # none at a last level below 0.1
    assert not Rollover().needs_gradient and Rollover(strength=0.1).needs_gradient


def test_the_mean_is_moved_along_the_gradient():
    """In closed form: of a loss −a·x0 the gradient is −a, so that x0 moves along a, by the
    strength, sin²(πn/2) and its own rms; the noisy sample stays."""
    a = torch.tensor([0.8, -0.4, 0.1])[:, None, None]
    x = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    here = Level("epsilon", 0.8, 0.6)
    at = At(0, 0, here, x, 0.5 * x, here.x0(0.5 * x, x))
    run = Run(
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        decode=lambda x0: x0,
        objective=as_objective(lambda image: -(image * a).flatten(1).sum(1)),
        generators=[torch.Generator(), torch.Generator()],
        streams=(),
        warn=None,
        total=4,
    )
    state = _State(quota=2, sample=at.sample, model_output=at.model_output)
    outcome = Rollover(strength=0.3)._moved(run, at, state)
    rms_B = at.x0.flatten(1).square().mean(1).sqrt()
    size = 0.3 * math.sin(here.noise * math.pi / 2) ** 2 * rms_B[:, None, None, None]
    assert_close(here.x0(outcome.model_output, x), at.x0 + size * a / a.square().mean().sqrt())
    assert torch.equal(outcome.sample, x)
    run.factor_B = torch.tensor([0.0, 0.5])  # steering of the first image has stopped
    half = here.x0(Rollover(strength=0.3)._moved(run, at, state).model_output, x)
    assert_close(half[0], at.x0[0])
    assert_close(half[1] - at.x0[1], (size * a / a.square().mean().sqrt())[1] / 2)
    plain = Rollover()._moved(run, at, state)
    assert plain.model_output is at.model_output


def test_with_little_noise_it_is_the_sampler_itself(pipe):
    """η says how much of the noise is drawn anew: next to none, and all proposals are the plain
    step."""
    use(pipe, "DDIM")
    plain = draw(pipe, steps=4)
    for eta, near in ((1e-6, True), (1.0, False)):
        with steer(pipe, Brightness(), method=Rollover(quota=2, eta=eta)):
            assert torch.allclose(draw(pipe, steps=4), plain, atol=1e-3) == near


def test_a_recipe_keeps_its_strength():
    for method in (Rollover(quota=3, strength=0.2, interpolant="own"), Rollover()):
        strength, options = recipe_options(method)
        recipe = SimpleNamespace(method="rollover", options=options, strength=strength)
        assert method_of(recipe) == method
    recipe = SimpleNamespace(method="particles", options={}, strength=0.0)
    assert method_of(recipe) == Particles()
