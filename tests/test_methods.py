"""The methods beside the shortcut: what each promises, on tiny random models."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings

import diffusers
import pytest
import torch
from test_guidance import draw, use
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import (
    METHODS,
    Backprop,
    BestOf,
    Drafts,
    Lookahead,
    Noise,
    Particles,
    Rollover,
    Shortcut,
    steer,
    travel,
)
from clipguide.guidance.calls import Calls
from clipguide.guidance.contract import Method
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.generators import restarted
from clipguide.guidance.levels import Level
from clipguide.guidance.methods.particles import Weights
from clipguide.guidance.noise_levels import level, next_level
from clipguide.guidance.run import At
from clipguide.guidance.trust import Trust
from clipguide.objectives import Objective, Similarity

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


class Brightness(Objective):
    """−mean: brighter is better, and smooth."""

    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


def settings(seeds=(3, 4), steps=4, prompt="a fox", **others) -> dict:
    return {
        "prompt": [prompt] * len(seeds),
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "output_type": "pt",
        **others,
    }


def loss(image_B3HW) -> torch.Tensor:
    return Brightness()(image_B3HW)


CALLED = [
    BestOf(number=2),
    Lookahead(number=3, steps=2),
    Noise(iterations=2),
    Drafts(iterations=2, draft_steps=2),
    Backprop(),
    Backprop(rho=0.5, mu=0.5, inner=2),
]
NAMES = ["best-of", "lookahead", "noise", "drafts", "backprop", "backprop both"]


@pytest.mark.parametrize("method", CALLED, ids=NAMES)
def test_called_methods(pipe, method):
    """Lower than plain, the same twice, the pipeline as it was; and not by pipe()."""
    use(pipe, "DDIM")
    plain = draw(pipe)
    trainable = [p.requires_grad for p in pipe.unet.parameters()]
    images = []
    for _ in range(2):
        with steer(pipe, Brightness(), method=method) as s:
            images.append(s(**settings()).images)
    assert torch.equal(*images)
    assert loss(images[0]).mean() < loss(plain).mean()
    assert [p.requires_grad for p in pipe.unet.parameters()] == trainable
    assert not pipe.unet.is_gradient_checkpointing and torch.equal(draw(pipe), plain)
    with (
        pytest.raises(ClipguideError, match=r"call s\(…\)"),
        steer(pipe, Brightness(), method=method),
    ):
        draw(pipe)
    assert torch.equal(draw(pipe), plain)


def test_a_step_method_by_a_call_is_the_pipeline(pipe, clip):
    with steer(pipe, "a red fox", clip=clip) as s:
        assert torch.equal(s(**settings()).images, draw(pipe))


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_best_of_keeps_the_best_of_each(pipe, clip, output_type):
    """Each kept image is that of its best candidate, drawn from the seed that is promised."""
    with steer(pipe, "a red fox", clip=clip, method=BestOf(number=3)) as s:
        kept = s(**settings(output_type=output_type)).images
    stack = torch.stack(s.report.candidates)
    assert stack.shape == (3, 2) and len(set(stack.flatten().tolist())) == 6
    for i, k in enumerate(stack.argmax(0).tolist()):
        seeds = [seed + k * 1_000_000 for seed in (3, 4)]
        alone = pipe(**settings(seeds, output_type=output_type)).images[i]
        same = alone == kept[i]
        assert same if isinstance(same, bool) else same.all()


@pytest.mark.parametrize("finish", [None, 2])
def test_best_of_goes_on_with_its_generators(pipe, finish):
    """A second call with the same generators draws candidates that are all new, as a second call of
    the pipeline does; from copies of them it draws the same again."""
    method = BestOf(number=3, finish=finish)
    generators = settings()["generator"]
    seen, copies = [], None
    for k in range(3):
        if k == 1:
            copies = restarted(generators)
        given = settings(generator=copies if k == 2 else generators)
        with steer(pipe, Brightness(), method=method) as s:
            image = s(**given).images
        seen.append((set(torch.stack(s.report.candidates).flatten().tolist()), image))
    assert not seen[0][0] & seen[1][0]
    assert seen[1][0] == seen[2][0] and torch.equal(seen[1][1], seen[2][1])


def test_noise_keeps_the_best(pipe):
    use(pipe, "LCM")
    with steer(pipe, Brightness(), method=Noise(iterations=5, rate=0.3)) as s:
        latents = s(**settings(steps=1, output_type="latent")).images
    losses = -torch.stack(s.report.candidates)
    kept = loss(Decoder(pipe)(latents))
    assert_close(kept, losses.min(0).values, atol=1e-5, rtol=0)
    assert (kept < losses[0]).all()


def states(generators) -> list[torch.Tensor]:
    return [generator.get_state() for generator in generators]


@pytest.mark.parametrize(
    ("name", "more"), [("LCM", {}), ("DDPM", {}), ("Euler a", {}), ("DDIM", {"eta": 1.0})]
)
def test_noise_and_the_samplers_noise_are_apart(pipe, name, more):
    """At the first step of each run the generators are where the pipeline's own are, behind the
    initial noise, so that what the sampler draws is as independent of it as the pipeline's is; the
    image that nothing moved is that of the pipeline, alone too; and they end where its own end."""
    use(pipe, name)
    begun, step = [], pipe.scheduler.step

    def spied(*args, generator, **kwargs):
        begun.append((states(generator), args[2].detach()))
        return step(*args, generator=generator, **kwargs)

    still = {"white": False, "rate": 0.0, "iterations": 2}
    images, ends = [], []
    pipe.scheduler.step = functools.wraps(step)(spied)
    try:
        for seeds, method in (((3, 4), None), ((3, 4), Noise(**still)), ((3,), Noise(**still))):
            given = settings(seeds, **more)
            generator = given["generator"]
            if method is None:
                images.append(pipe(**given).images)
            else:
                with steer(pipe, Brightness(), method=method) as s:
                    images.append(s(**given).images)
            ends.append(states(generator))
    finally:
        del pipe.scheduler.step
    assert torch.equal(images[1], images[0])
    assert_close(images[2], images[0][:1], atol=1e-4, rtol=0)
    first, z = begun[0]
    runs = begun[:: len(pipe.scheduler.timesteps)]
    assert len(runs) == 1 + 4 + 4
    for seen, _ in runs:
        assert all(torch.equal(*pair) for pair in zip(seen, first))
    for state, latents in zip(first, z / pipe.scheduler.init_noise_sigma, strict=True):
        generator = torch.Generator()
        generator.set_state(state)
        drawn = torch.randn(latents.shape, generator=generator)
        pair = torch.stack([latents.flatten(), drawn.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.2  # of 256 numbers: three errors
    for end in ends[1:]:
        assert all(torch.equal(*pair) for pair in zip(end, ends[0]))


def test_noise_without_a_generator_draws_what_it_chose(pipe):
    """One seed for all runs: the image is worth what the best of them was."""
    use(pipe, "LCM")
    torch.manual_seed(0)
    given = settings((3,), output_type="latent")
    given.pop("generator")
    with steer(pipe, Brightness(), method=Noise(iterations=3, rate=0.3)) as s:
        latents = s(**given).images
    losses = -torch.stack(s.report.candidates)
    assert_close(loss(Decoder(pipe)(latents)), losses.min(0).values, atol=1e-5, rtol=0)


def test_noise_gradient(pipe):
    """The gradient by the initial latents is that of finite differences through the sampling."""
    use(pipe, "Euler")
    given = settings((3,), steps=2)
    generator = given.pop("generator")
    del given["output_type"]
    method = Noise(iterations=1)
    with steer(pipe, Brightness(), method=method) as s:
        calls = Calls(s._session)  # as inside of s(…)
        z = calls.initial_noise(generator=generator, **given)

        def through(z):
            z = z.detach().requires_grad_()
            return calls.through(z, latents=z, **given)

        seen = through(z)
        direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        h = 1e-2
        ends = [through(z + sign * h * direction).loss_B for sign in (1, -1)]
    assert_close(
        (ends[0] - ends[1]) / (2 * h),
        (seen.value * direction).flatten(1).sum(1),
        rtol=2e-2,
        atol=1e-5,
    )


def test_backprop_gradient_is_through_the_denoiser(pipe):
    """At one evaluation: the move lies along −∇ over x_t of loss(decode(x0(x_t)))."""
    use(pipe, "DDIM")
    seen = {}

    class Spy(Backprop):
        def start(self, run):
            act = super().start(run)

            def spy(at):
                outcome = act(at)
                if at.index == 2:
                    seen.update(at=at, outcome=outcome, decode=run.decode)
                return outcome

            return spy

    with steer(pipe, Brightness(), method=Spy(strength=0.05)) as s:
        s(**settings((3,)))
        at, decode = seen["at"], seen["decode"]
        x = at.sample.detach().requires_grad_()
        embeds, negative = pipe.encode_prompt("a fox", "cpu", 1, True, negative_prompt=None)
        v = pipe.unet(torch.cat([x, x]), at.timestep, torch.cat([negative, embeds])).sample
        negative_v, positive_v = v.chunk(2)
        v = negative_v + 7.5 * (positive_v - negative_v)
        (g,) = torch.autograd.grad(loss(decode(at.level.x0(v, x))).sum(), x)
    assert_close(v, at.model_output, rtol=1e-4, atol=1e-5)
    delta = at.level.x0(seen["outcome"].model_output, x) - at.level.x0(at.model_output, x)
    assert torch.cosine_similarity(delta.flatten(), -g.flatten(), dim=0) > 0.999
    rms = delta.square().mean().sqrt() / at.x0.square().mean().sqrt()
    assert_close(rms.item(), 0.05 * math.sin(at.level.noise * math.pi / 2) ** 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["DDIM", "Euler", "Euler a", "DDPM"])
def test_particles_are_better_than_samples_left_alone(pipe, name):
    use(pipe, name)
    mean = []
    for sharpness in (3000.0, 0.0):
        method = Particles(number=12, sharpness=sharpness, every=1)
        with steer(pipe, Brightness(), method=method):
            mean.append(loss(draw(pipe, seeds=range(12), steps=8)).mean())
    assert mean[0] < mean[1]


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_particles_repeat_and_part(pipe, potential):
    use(pipe, "DDIM")
    method = Particles(number=4, sharpness=1e5, potential=potential, every=1, window=(0.6, 1))
    images = []
    for _ in range(2):
        with steer(pipe, Brightness(), method=method):
            images.append(draw(pipe, seeds=(1, 2, 3, 4), steps=6))
    assert torch.equal(*images)
    assert len({float(value) for value in loss(images[0])}) == 4


def test_particles_keep_to_their_groups(pipe):
    use(pipe, "Euler a")
    method = Particles(number=2, sharpness=1e4, every=1)
    with steer(pipe, Brightness(), method=method):
        both = draw(pipe, seeds=(1, 2, 3, 4), steps=5)
        assert_close(draw(pipe, seeds=(1, 2), steps=5), both[:2], atol=1e-4, rtol=0)


def test_particles_are_drawn_anew_where_few_matter():
    """A small ESS resamples, and what is known of each particle goes with it."""
    method = Particles(number=4, sharpness=1.0, threshold=0.9)
    weights = Weights(4)
    weights.log_B = torch.tensor([0.5, 0.3, 0.1, 0.1], dtype=torch.float64).log()
    weights.best_B = torch.arange(4.0, dtype=torch.float64)
    index = method._resample(weights, [torch.Generator().manual_seed(0)] * 4)
    counts = torch.bincount(index, minlength=4)
    assert ((counts - 4 * torch.tensor([0.5, 0.3, 0.1, 0.1])).abs() < 1).all()
    assert not weights.log_B.any() and torch.equal(weights.best_B, index.double())
    assert method._resample(Weights(4), [torch.Generator().manual_seed(0)] * 4) is None
    none = Weights(4)
    none.log_B[:] = -torch.inf  # no reward was a number
    assert method._resample(none, [torch.Generator().manual_seed(0)] * 4) is None
    assert not none.log_B.any()


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_particles_potentials_end_at_the_reward(potential):
    """Whatever a particle's way, all its potentials come to λ r of its last reward, for a λ that
    rises too; and a reward that is no number weighs nothing, once."""
    weights = Weights(2)
    for sharpness, reward in ((0.5, [0.1, 0.2]), (1.0, [0.4, 0.1]), (2.0, [0.3, 0.7])):
        last = sharpness == 2.0
        weights.weigh(torch.tensor(reward).double(), potential, sharpness, last=last)
    assert_close(weights.log_B, 2.0 * torch.tensor([0.3, 0.7]).double())
    weights.weigh(torch.tensor([-torch.inf, 0.7]).double(), potential, 2.0)
    assert weights.log_B[0] == -torch.inf and weights.log_B[1].isfinite()


def test_particles_potentials_on_the_way():
    """λ times the best reward so far, or their sum, each time anew; of the difference λr − λ'r'."""
    grown = {}
    for potential in ("difference", "max", "sum"):
        weights, before = Weights(1), 0.0
        for sharpness, reward in ((0.5, 0.4), (1.0, 0.1), (2.0, 0.7)):
            weights.weigh(torch.tensor([reward]).double(), potential, sharpness)
            now = weights.log_B.item()
            grown.setdefault(potential, []).append(now - before)
            before = now
    assert grown["difference"] == pytest.approx([0.5 * 0.4, 0.1 - 0.5 * 0.4, 2 * 0.7 - 0.1])
    assert grown["max"] == pytest.approx([0.5 * 0.4, 0.4, 2 * 0.7])
    assert grown["sum"] == pytest.approx([0.5 * 0.4, 0.4 + 0.1, 2 * (0.4 + 0.1 + 0.7)])


def test_particles_take_the_history_of_their_sampler_with_them(pipe):
    """Where all come from one, what the sampler carries over from the step before is that one's."""
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction",
        algorithm_type="sde-dpmsolver++",
    )  # fmt: skip
    step, alike = pipe.scheduler.step, 0

    def spied(model_output, *args, **kwargs):
        nonlocal alike
        history = pipe.scheduler.model_outputs[-1]
        if history is not None and all(torch.equal(row, model_output[0]) for row in model_output):
            alike += 1
            assert all(torch.equal(row, history[0]) for row in history)
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = functools.wraps(step)(spied)
    method = Particles(number=3, sharpness=1e9, every=2)
    with steer(pipe, Brightness(), method=method):
        draw(pipe, seeds=(1, 2, 3), steps=6)
    assert alike


def test_the_stochastic_step_has_the_marginals_of_the_plain_one():
    """A Gaussian posterior known exactly: the variance at the next level is σ_s² + α_s² var(x0)."""
    here, there = Level("flow", 0.3, 0.7), Level("flow", 0.6, 0.4)
    from clipguide.guidance.stochastic import spread_of

    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(200_000, generator=generator, dtype=torch.float64) * 0.0 + 0.5
    epsilon = torch.randn(200_000, generator=generator, dtype=torch.float64)
    fresh = torch.randn(200_000, generator=generator, dtype=torch.float64)
    spread = spread_of(here, there, 1.0)
    x = there.alpha * x0 + math.sqrt(there.sigma**2 - spread**2) * epsilon + spread * fresh
    assert_close(x.mean().item(), there.alpha * 0.5, atol=5e-3, rtol=0)
    assert_close(x.std().item(), there.sigma, atol=5e-3, rtol=0)
    ratio = (
        here.alpha / there.alpha
    )  # forward from there, the joint with x_t is that of the process
    forward = math.sqrt(here.sigma**2 - (ratio * there.sigma) ** 2)
    assert_close(spread, forward * there.sigma / here.sigma, atol=1e-12, rtol=0)


def test_lookahead_move_is_the_gradient_of_the_expected_future_reward():
    """σ²/α · ∇ log Σ q(x|x0ᵏ) e^{λr} − log Σ q(x|x0ᵏ), by autograd, is the move of x0."""
    generator = torch.Generator().manual_seed(0)
    x0_KB = torch.randn(5, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    score_KB = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    level = Level("epsilon", 0.8, 0.6)
    size = x[0].numel()
    method = Lookahead(sharpness=2.0, temperature=1 / size)  # the exact kernel
    at = At(0, 0, level, x.detach(), x.detach(), x.detach())
    log_q = -(x - 0.8 * x0_KB).square().flatten(2).sum(2) / (2 * 0.36)
    reward = (log_q + 2.0 * score_KB).logsumexp(0) - log_q.logsumexp(0)
    (g,) = torch.autograd.grad(reward.sum(), x)
    assert_close(method.move(at, x0_KB, score_KB), g * 0.36 / 0.8)


def test_travel_goes_there_and_back(pipe, clip):
    """Every step twice; zero strength and r = 1 change no bit; more travel is another image."""
    for name in ("DDIM", "Euler", "Euler a", "DDPM"):
        use(pipe, name)
        plain = draw(pipe)
        with steer(pipe, "a red fox", clip=clip, method=Shortcut(travel=2)) as s:
            twice = draw(pipe)
            assert torch.equal(draw(pipe), twice)
        noise = [step.noise for step in s.report.trace]
        assert len(noise) == 8 and noise[::2] == noise[1::2]
        assert not torch.equal(twice, plain) and twice.isfinite().all()
        assert torch.equal(draw(pipe), plain)


def test_travel_keeps_the_marginals():
    """x_s of a known Gaussian, noised back: mean α_t x0, deviation σ_t."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    trip = travel.Travel(2)
    scheduler.set_timesteps(10)
    trip.enlarge(scheduler)
    trip.begin(20)
    t = scheduler.timesteps[3]
    here, there = level(scheduler, t), next_level(scheduler, t)
    generator = torch.Generator().manual_seed(0)
    e, z = (torch.randn(400_000, generator=generator) for _ in range(2))
    back = trip.back(At(6, t, here, e, e, e), there.alpha * 0.5 + there.sigma * e, z)
    assert_close(back.mean().item(), here.alpha * 0.5, atol=5e-3, rtol=0)
    assert_close(back.std().item(), here.sigma, atol=5e-3, rtol=0)


def test_momentum(pipe, clip):
    images = []
    for method in (Shortcut(), Shortcut(momentum=0.0), Shortcut(momentum=0.7)):
        with steer(pipe, "a red fox", clip=clip, method=method):
            images.append(draw(pipe))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_trust_halves_then_stops():
    trust = Trust(2)
    scores = [(0.1, 0.2), (0.2, 0.1), (0.3, 0.1), (0.4, 0.1), (0.5, 0.1), (0.6, 0.1)]
    factors = []
    for guide, judge in scores:
        trust.see(torch.tensor([guide, guide]), torch.tensor([judge, guide]))
        factors.append(trust.factor_B.tolist())
    assert [f[0] for f in factors] == [1, 1, 0.5, 0.5, 0, 0]
    assert [f[1] for f in factors] == [1] * 6


def test_trust_has_margins():
    """A fall of 0.01 in cosine and a gain of a hundredth are not enough, a little more is; both are
    counted from where the judge was best."""
    for fall, gain, factor in ((0.009, 1.5, 1.0), (0.011, 1.009, 1.0), (0.011, 1.011, 0.5)):
        trust, later = Trust(1), (gain * 0.5 - 0.1, 0.25 - fall)
        for rank, judge in ((0.5, 0.20), (0.4, 0.25), later, later):
            trust.see(torch.tensor([rank]), torch.tensor([judge]))
        assert trust.factor_B.item() == factor


class Climbs(Similarity):
    """−objective rises with each time that the judge was asked."""

    asked = 0

    def __call__(self, image_B3HW, generators=None):
        return (0 * image_B3HW).flatten(1).sum(1) - 0.1 - 0.05 * Climbs.asked


class Falls(Similarity):
    """A judge whose score of the first image falls, and of the second rises."""

    def score(self, image_B3HW):
        Climbs.asked += 1
        rising = 0.1 + 0.05 * Climbs.asked
        return torch.tensor([-rising, rising])


def judged(pipe, objective, judge, **settings):
    """The steering of a run of 10 steps, which warned of nothing."""
    use(pipe, "DDIM")
    Climbs.asked = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        with steer(pipe, objective, judge=judge, **{"score_every": 1, **settings}) as s:
            s.drawn = draw(pipe, steps=10)
    return s


def test_doubt_is_acted_on_and_in_the_outcome(pipe, clip, judge):
    """The objective gets better while the judge falls: the strength of that image alone goes, from
    the step after the second such scoring on, and no warning is given."""
    s = judged(pipe, Climbs(clip, "a red fox"), Falls(judge, "a red fox"))
    assert (s.report.eased(0), s.report.eased(1)) == (3, None) and not s.report.warnings
    trust = [row["trust"] for row in s.report.rows(0)]
    assert trust == [1, 1, 1, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert {row["trust"] for row in s.report.rows(1)} == {1}


def test_nothing_is_decided_in_the_last_tenth(pipe, clip, judge):
    """Of 10 steps: the second bad score at the ninth would ease the last, which is too late; at the
    eighth it eases the ninth."""

    class At(Falls):
        places = ()

        def score(self, image_B3HW):
            at = Climbs.asked
            fell = super().score(image_B3HW)
            return fell if at in self.places else torch.zeros(2)

    early, late = At(judge, "a red fox"), At(judge, "a red fox")
    early.places, late.places = (6, 7, 8, 9), (7, 8, 9)
    assert judged(pipe, Climbs(clip, "a red fox"), early).report.eased(0) == 8
    assert judged(pipe, Climbs(clip, "a red fox"), late).report.eased(0) is None


@pytest.mark.parametrize("method", [Particles(number=2, every=1), Rollover(quota=2)])
def test_what_has_no_strength_is_not_eased(pipe, clip, judge, method):
    s = judged(pipe, Climbs(clip, "a red fox"), Falls(judge, "a red fox"), method=method)
    assert s.report.eased(0) is None and "trust" not in s.report.rows(0)[-1]


def test_what_ranks_is_what_is_minimised(pipe, clip, judge):
    """Away from the prompt, a judge's falling score is what is meant, and its rising the alarm."""
    judging = Falls(judge, "a red fox")

    class Away(Climbs):
        def terms(self):
            yield -1.0, judging

    s = judged(pipe, Away(clip, "a red fox"), judging)
    assert (s.report.eased(0), s.report.eased(1)) == (None, 3)


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_best_of_keeps_what_is_minimised(pipe, clip, factor):
    """With a negative factor, the image that is least like the prompt; and a second term counts."""
    whole = factor * Similarity(clip, "a red fox", views=None) + 3.0 * Brightness()
    with steer(pipe, whole, method=BestOf(number=3)) as s:
        kept = draw(s)
    losses = []
    for k in range(3):
        losses.append(whole(draw(pipe, seeds=[seed + k * 1_000_000 for seed in (3, 4)])))
    assert_close(-torch.stack(s.report.candidates), torch.stack(losses), atol=1e-5, rtol=0)
    assert_close(whole(kept), torch.stack(losses).min(0).values, atol=1e-5, rtol=0)


def test_a_trace_scores_every_step_and_changes_no_bit(pipe, clip, judge):
    """Nor when the steering stops: trust is asked no more often for it."""
    seen = {}
    for trace in (False, True):
        objective, falls = Climbs(clip, "a red fox"), Falls(judge, "a red fox")
        s = seen[trace] = judged(pipe, objective, falls, score_every=2, trace=trace)
        scored = [step.index for step in s.report.trace if step.judge_score_B is not None]
        assert scored == (list(range(10)) if trace else [0, 2, 4, 6, 8, 9])
    assert torch.equal(seen[True].drawn, seen[False].drawn)
    assert seen[True].report.eased(0) == seen[False].report.eased(0) == 5


def test_attach_and_detach(pipe, clip):
    plain = draw(pipe)
    s = steer(pipe, "a red fox", clip=clip).attach()
    steered = draw(pipe)
    s.detach()
    assert not torch.equal(steered, plain) and torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("name", ["shortcut", "backprop", "lookahead", "particles"])
def test_idle_changes_no_bit(pipe, clip, name):
    zero = {
        "shortcut": {"strength": 0.0},
        "backprop": {"strength": 0.0},
        "lookahead": {"scale": 0.0},
        "particles": {"sharpness": 0.0},
    }[name]
    use(pipe, "Euler a")
    plain = draw(pipe)
    with steer(pipe, "a red fox", clip=clip, method=METHODS[name](**zero)) as s:
        assert torch.equal(
            s(**settings(seeds=(3, 4) if name != "particles" else (3, 4, 5, 6))).images[:2], plain
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "shortcuts"}, "Did you mean shortcut"),
        ({"method": "particles", "strength": 0.1}, "particles has no option strength"),
        ({"method": Shortcut(), "strength": 0.1}, "configured already"),
    ],
)
def test_naming_a_method(pipe, clip, arguments, message):
    with pytest.raises(UsageError, match=message):
        steer(pipe, "a red fox", clip=clip, **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shortcut(momentum=1), "momentum"),
        (lambda: Shortcut(travel=0), "travel"),
        (lambda: BestOf(number=0), "number"),
        (lambda: BestOf(number=2, finish=3), "cannot be finished"),
        (lambda: BestOf(look=1.0), "look"),
        (lambda: Particles(resampling="ssb"), "Did you mean ssp"),
        (lambda: Particles(rising=2), "rising"),
        (lambda: Rollover(enough=math.nan), "enough"),
        (lambda: Particles(number=1), "number"),
        (lambda: Particles(potential="maximum"), "potential"),
        (lambda: Lookahead(temperature=0), "temperature"),
        (lambda: Noise(iterations=0), "iterations"),
        (lambda: Backprop(rho=0, mu=0), "rho"),
        (lambda: Backprop(strength=math.nan), "strength"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_what_does_not_fit_a_sampler(pipe, clip):
    use(pipe, "DPM++ 2M")
    for method, message in (
        (Particles(), "neither stochastic"),
        (Shortcut(travel=2), "first-order"),
    ):
        with (
            pytest.raises(ClipguideError, match=message),
            steer(pipe, "a red fox", clip=clip, method=method),
        ):
            pass
    use(pipe, "Euler a")
    with (
        pytest.raises(ClipguideError, match="num_images_per_prompt=4"),
        steer(pipe, "a red fox", clip=clip, method="particles"),
    ):
        draw(pipe)
    with (
        pytest.raises(UsageError, match="latents"),
        steer(pipe, "a red fox", clip=clip, method="best-of") as s,
    ):
        s(**settings(latents=torch.zeros(2, 4, 8, 8)))


@pytest.mark.parametrize("name", METHODS)
def test_only_a_method_that_acts_at_some_steps_takes_a_window(name):
    """The others act at every step, or at none: `window` and `every` would have no effect."""
    kind = METHODS[name]
    acts_at_some = kind.start is not Method.start and not kind().covers(0.0)
    kind(window=[0.1, 1.0])  # the default
    for field, value in (("window", (0.2, 0.8)), ("every", 2)):
        if acts_at_some:
            assert getattr(kind(**{field: value}), field) == value
        else:
            with pytest.raises(UsageError, match=f"{name} takes no window and no every: leave"):
                kind(**{field: value})


def test_methods_are_frozen():
    for method in METHODS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            method().every = 2


class Either(diffusers.StableDiffusionPipeline):
    """Begins with an image where one is given, as the community's lpw_stable_diffusion."""

    @torch.no_grad()
    def __call__(self, image=None, strength=0.8, latents=None, **settings):
        assert image is None
        call = diffusers.StableDiffusionPipeline.__call__.__wrapped__
        return call(self, latents=latents, **settings)


def test_noise_where_an_image_may_be_given():
    """Its strength, 0.8 by default, means nothing without one."""
    made, settings = tiny("SD 1.5")
    pipe = Either(**made.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings |= {"num_inference_steps": 2, "output_type": "pt"}
    with steer(pipe, Brightness(), method=Noise(iterations=1)) as s:
        assert s(**settings).images.isfinite().all()
        with pytest.raises(UsageError, match="strength=0.8 begins with the image"):
            s(**settings, image=torch.zeros(1, 3, 32, 64))
# ------------------------------------------------------------ pruning by previews
class Counted:
    """How many evaluations of the denoiser a pipeline took."""

    def __init__(self, pipe):
        self.number = 0
        self.hook = pipe.unet.register_forward_hook(self)

    def __call__(self, *_):
        self.number += 1


@pytest.mark.parametrize("each", [None, Shortcut(strength=0.2)])
def test_best_of_finishes_the_best_previews(pipe, each):
    """Those of the best x0 after 2 of 5 steps, and no others, are drawn to the end, each as it
    would have been without; it costs 4 · 2 + 2 · 5 evaluations."""
    use(pipe, "DDIM")
    given = settings(steps=5)
    with steer(pipe, Brightness(), method=BestOf(number=4, each=each)) as s:
        s(**settings(steps=5))
    whole = torch.stack(s.report.candidates)
    seen = Counted(pipe)
    with steer(pipe, Brightness(), method=BestOf(number=4, each=each, finish=2, look=0.4)) as s:
        kept = s(**given).images
    assert seen.number == 4 * 2 + 2 * 5
    seen.hook.remove()
    found = torch.stack(s.report.candidates)
    assert found.shape == (2, 2)
    previews = []
    for k in range(4):
        at = {}

        def note(step, at=at):
            if step.index == 1:
                at["image"] = step.preview()

        seeds = [seed + k * 1_000_000 for seed in (3, 4)]
        method = each or Shortcut(strength=0.0)
        with steer(pipe, Brightness(), method=method, on_step=note, decoder="vae"):
            draw(pipe, seeds=seeds, steps=5)
        previews.append(-loss(at["image"]))
    if each is None:  # a steered x0 is looked at after its move
        order = torch.stack(previews).argsort(0, descending=True)[:2]
        assert_close(found, whole.gather(0, order), atol=1e-5, rtol=0)
    for i in range(2):
        assert all((whole[:, i] - score).abs().min() < 1e-5 for score in found[:, i])
    assert_close(-loss(kept), found.amax(0), atol=1e-5, rtol=0)


def test_best_of_with_one_generator_for_all(pipe):
    """The images of a batch that share a generator live and die together."""
    use(pipe, "DDIM")
    given = {"prompt": ["a fox"] * 2, "num_inference_steps": 4, "output_type": "pt"}
    with steer(pipe, Brightness(), method=BestOf(number=3, finish=1)) as s:
        kept = s(**given, generator=torch.Generator().manual_seed(3)).images
    alone = [
        pipe(**given, generator=torch.Generator().manual_seed(3 + k * 1_000_000)).images
        for k in range(3)
    ]
    assert any(torch.equal(kept, image) for image in alone)
    with (
        pytest.raises(UsageError, match="give `generator`"),
        steer(pipe, Brightness(), method=BestOf(number=3, finish=1)) as s,
    ):
        s(**given)


# ------------------------------------------------------------ what is good enough
def test_rollover_ends_when_it_is_good_enough(pipe):
    """At a threshold that everything reaches, one evaluation a step, and the image is that of the
    first proposals; at one that nothing reaches, the whole budget and the same bits as without."""
    use(pipe, "DDIM")
    images, costs = {}, {}
    for enough in (-1e9, 1e9, None):
        seen = Counted(pipe)
        with steer(pipe, Brightness(), method=Rollover(quota=3, enough=enough)) as s:
            images[enough] = draw(pipe, steps=5)
        costs[enough] = seen.number
        seen.hook.remove()
        assert images[enough].isfinite().all() and s.report.trace[-1].noise < 0.5
    assert costs == {-1e9: 5, 1e9: 15, None: 15}
    assert torch.equal(images[1e9], images[None])
    assert not torch.equal(images[-1e9], images[None])
    with steer(pipe, Brightness(), method=Rollover(quota=3)):
        assert torch.equal(draw(pipe, steps=5), images[None])  # the pipeline is as it was


def test_the_last_evaluation_that_is_due_is_known(pipe, monkeypatch):
    """Of 8 steps each third is due, so 0, 3 and 6: the last of these, not of the run."""
    from clipguide.guidance.methods.particles import Weights

    told, weigh = [], Weights.weigh

    def spied(self, *args, last=False):
        told.append(last)
        weigh(self, *args, last=last)

    monkeypatch.setattr(Weights, "weigh", spied)
    use(pipe, "DDIM")
    method = Particles(number=2, potential="max", every=3, window=(0, 1))
    with steer(pipe, Brightness(), method=method):
        draw(pipe, steps=8)
    assert told == [False, False, True]
