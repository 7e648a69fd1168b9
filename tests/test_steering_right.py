"""What was wrong without a word: strengths, clipped x0, half precision, modes of torch."""

from __future__ import annotations

import math
import warnings

import diffusers
import pytest
import torch
from test_guidance import draw, use
from test_methods import Brightness, settings
from tiny_pipelines import draw as draw_tiny
from tiny_pipelines import noise, tiny
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import (
    Backprop,
    BestOf,
    Lookahead,
    Noise,
    Particles,
    Rollover,
    Shortcut,
    noise_levels,
    schedulers,
    steer,
)
from clipguide.guidance.descent import descend
from clipguide.guidance.levels import Level
from clipguide.guidance.run import At, Gradient, Run
from clipguide.objectives import (
    Nothing,
    Scheduled,
    Similarity,
    TotalVariation,
    as_objective,
    finished,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HALF = [torch.bfloat16, torch.float16]


# ------------------------------------------------------------------ strengths
@pytest.mark.parametrize(
    ("objective", "strength"),
    [
        (2.0 * Brightness(), 0.1),
        (Scheduled(Brightness(), "2"), 0.1),
        (Scheduled(0.5 * Brightness(), "4@0..1"), 0.1),
        (Brightness(), "0.2"),
        (Brightness(), "0.2@0..1"),
        (Brightness(), (0.2, 0.2)),
        (Brightness(), lambda level: 0.2),
    ],
)
def test_a_factor_of_the_whole_is_a_strength(pipe, objective, strength):
    """All of these are strength 0.2."""
    with steer(pipe, Brightness(), strength=0.2):
        expected = draw(pipe)
    with steer(pipe, objective, strength=strength) as s:
        assert_close(draw(pipe), expected, atol=1e-5, rtol=0)
    assert s.report.steered


def test_the_documented_schedule_has_its_effect(pipe):
    """docs/coming-from.md's: less strength in the second half, none where there is no piece."""
    full, less, half = [], [], []
    for spec, found in (("1", full), ("1@0..0.4,0.3@0.4..1", less), ("1@0..0.5", half)):
        with steer(pipe, Scheduled(Brightness(), spec), window=(0, 1)) as s:
            found.append(draw(pipe, steps=10))
            found.append([step.loss_B is not None for step in s.report.trace])
            found.append([step.noise for step in s.report.trace])
    assert not torch.equal(full[0], less[0])
    assert all(full[1][:-1]) and all(less[1][:-1])
    expected = [1 - level <= 0.5 + 1e-6 for level in half[2]]
    assert half[1] == expected and not all(expected)
    with steer(pipe, Brightness(), strength="0.2@0..0.5", window=(0, 1)):
        assert_close(draw(pipe, steps=10), half[0], atol=1e-6, rtol=0)


def test_a_weight_of_a_sum_is_its_terms_own():
    objective = 2.0 * (Brightness() + Scheduled(TotalVariation(), "1>0"))
    assert objective.weight(0.5) == 2.0 and Brightness().weight(0.3) == 1.0
    assert (Brightness() + Brightness()).weight(0.3) == 1.0
    assert Scheduled(-3.0 * Brightness(), "0.5@0..0.5").weight(0.25) == 1.5
    assert Scheduled(Brightness(), "0.5@0..0.5").weight(0.75) == 0


def test_what_ranks_finished_images():
    """The objective as it ends, or what was last of it."""
    image = torch.rand(2, 3, 4, 4)
    ended = finished(Scheduled(Brightness(), "0.5@0..0.5"))
    assert_close(ended(image), 0.5 * Brightness()(image))
    assert_close(finished(-1.0 * Brightness())(image), -Brightness()(image))
    assert isinstance(finished(Scheduled(Brightness(), "0")), Nothing)


def test_ways_of_a_move():
    """Σ w ĝ, each of rms 1: twice the weight is twice the move, and two ways add up."""
    x0, g, h = (noise(2, 4, 3, 3, seed=k) for k in (1, 2, 3))

    def way(value):
        return lambda x: Gradient(x, x.flatten(1).sum(1), value)

    unit = lambda x: x / x.square().mean((1, 2, 3), keepdim=True).sqrt()  # noqa: E731
    size = 0.1 * x0.square().mean((1, 2, 3), keepdim=True).sqrt()
    both = descend(x0, [(2.0, way(g)), (0.5, way(7 * h))], size=0.1).delta
    assert_close(both, -size * (2 * unit(g) + 0.5 * unit(h)))
    bad = g.clone()
    bad[0, 0, 0, 0] = math.nan
    found = descend(x0, [(1.0, way(bad)), (1.0, way(h))], size=0.1)
    assert found.finite_B.tolist() == [False, True] and not found.delta[0].any()


def test_inner_moves_share_the_length_and_momentum_keeps_it():
    """Of a loss whose gradient is g everywhere: three moves are one of the same length; with the
    direction d before, the move lies along ĝ + m·d, and is as long as without."""
    seeded = (torch.Generator().manual_seed(k) for k in (3, 4, 5))
    x0, g, d = (torch.randn(2, 3, 4, 4, generator=generator) for generator in seeded)
    ways = [(1.0, lambda x: Gradient(x, x.flatten(1).sum(1), g))]
    rms = lambda x: x.square().mean((1, 2, 3), keepdim=True).sqrt()  # noqa: E731
    expected = -0.1 * rms(x0) * g / rms(g)
    for inner in (1, 3):
        assert_close(descend(x0, ways, size=0.1, inner=inner).delta, expected)
    mixed = g / rms(g) + 0.7 * d
    found = descend(x0, ways, size=0.1, momentum=0.7, before=d)
    assert_close(found.delta, -0.1 * rms(x0) * mixed / rms(mixed))
    assert_close(found.direction, mixed / rms(mixed))


def test_rho_is_of_the_way_through_the_denoiser_and_mu_of_the_other():
    """In closed form: of independent numbers of variance s², x0(x) is a factor of each number of x,
    α s²/(α² s² + σ²); the loss −a·x0 has the gradient −a there, and −a times the factor at x."""
    a = torch.tensor([0.8, -0.4, 0.1])[:, None, None]
    spread = torch.tensor([0.3, 1.0, 3.0])[:, None, None]
    level = Level("epsilon", 0.8, 0.6)
    factor = 0.8 * spread**2 / (0.64 * spread**2 + 0.36)
    x = noise(2, 3, 1, 1).requires_grad_()
    x0 = factor * x
    run = Run(
        scheduler=None,
        decode=lambda x0: x0,
        objective=as_objective(lambda image: -(image * a).flatten(1).sum(1)),
        generators=[torch.Generator(), torch.Generator()],
        streams=(),
        warn=None,
    )
    epsilon = level.epsilon(x0, x)
    method = Backprop(strength=0.3, rho=2.0, mu=0.5)
    outcome = method.start(run)(At(1, 0, level, x, epsilon, x0))
    unit = lambda v: v / v.square().mean().sqrt()  # noqa: E731
    rms = x0.square().mean((1, 2, 3), keepdim=True).sqrt()
    size = 0.3 * math.sin(level.noise * math.pi / 2) ** 2 * rms
    expected = size * (2.0 * unit(a * factor) + 0.5 * unit(a))
    assert_close(outcome.delta, expected)
    assert_close(level.x0(outcome.model_output, x), x0 + expected)


def test_rho_and_mu_are_sizes(pipe):
    """Not only their ratio: twice both is twice the strength."""
    use(pipe, "DDIM")
    images = []
    for method in (Backprop(rho=2, mu=1), Backprop(rho=4, mu=2), Backprop(rho=1, mu=0.5)):
        strength = {2: 0.1, 4: 0.05, 1: 0.2}[method.rho]
        method = Backprop(rho=method.rho, mu=method.mu, strength=strength)
        with steer(pipe, Brightness(), method=method) as s:
            images.append(draw(s))
    assert_close(images[0], images[1], atol=1e-4, rtol=0)
    assert_close(images[0], images[2], atol=1e-4, rtol=0)


LEVELS = [
    Level("epsilon", 0.6, 0.8),
    Level("v", 0.6, 0.8),
    Level("flow", 0.3, 0.7),
    Level("sample", 0.6, 0.8),
    Level("epsilon", 0.6, 0.8, scale=0.6),
    Level("F", 0.6 / 0.5, math.sqrt(1 - 0.36), scale=0.6 / 0.5, data=0.5),
]


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_both_moves(level):
    """x0 moves by delta; of the sample's the noise stays as well, of the output's the sample."""
    output, sample, delta = (noise(1, 4, 3, 3, seed=k).double() for k in (1, 2, 3))
    x0 = level.x0(output, sample)
    moved = level.move(output, delta)
    assert_close(level.x0(moved, sample), x0 + delta)
    moved, shifted = level.move_sample(output, sample, delta)
    assert_close(level.x0(moved, shifted), x0 + delta)
    assert_close(level.epsilon(x0 + delta, shifted), level.epsilon(x0, sample))


def test_a_fixed_noise_is_mpgds(pipe):
    """One DDIM step written out: x_s = √ᾱ_s (x0 + δ) + √(1 − ᾱ_s) ε, with the ε that there was."""
    use(pipe, "DDIM", "epsilon")
    scheduler = pipe.scheduler
    scheduler.set_timesteps(10)
    output, sample = noise(1, 4, 8, 8, seed=1), noise(1, 4, 8, 8, seed=2)
    t = scheduler.timesteps[4]
    here, there = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 100]
    x0 = (sample - (1 - here).sqrt() * output) / here.sqrt()
    seen = []

    class Spy(Shortcut):
        def start(self, run):
            act = super().start(run)

            def spy(at):
                seen.append(act(at))
                return seen[-1]

            return spy

    with steer(pipe, Brightness(), method=Spy(strength=0.3, fixed="noise")):
        stepped = pipe.scheduler.step(output, t, sample).prev_sample
    delta = seen[0].delta
    assert delta.abs().max() > 0
    assert_close(stepped, there.sqrt() * (x0 + delta) + (1 - there).sqrt() * output)
    with pytest.raises(UsageError, match="There is no fixed 'noize'. Did you mean noise"):
        Shortcut(fixed="noize")


# ------------------------------------------------------------------ x0 as the scheduler takes it
CLIPPED = {
    "DDIM": {"clip_sample": True, "clip_sample_range": 0.7},
    "DDPM": {"clip_sample": True},
    "LCM": {"thresholding": True, "clip_sample": False, "sample_max_value": 1.5},
    "DPM++ 2M": {"thresholding": True},
}


@pytest.mark.parametrize("name", CLIPPED)
def test_clip_sees_the_schedulers_x0(pipe, name):
    """Its pred_original_sample, or what convert_model_output gives."""
    use(pipe, name)
    kind = type(pipe.scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **CLIPPED[name])
    scheduler = pipe.scheduler
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        sample, output = noise(2, 4, 8, 8, seed=1) * 3, noise(2, 4, 8, 8, seed=2)
        level = noise_levels.level(scheduler, t)
        ours = schedulers.clipped(scheduler, level.x0(output, sample))
        expected = None
        if hasattr(scheduler, "convert_model_output"):
            expected = scheduler.convert_model_output(output, sample=sample)
        generator = torch.Generator().manual_seed(0)
        takes = {"generator": generator} if name != "DPM++ 2M" else {}
        step = scheduler.step(output, t, sample, **takes)
        expected = getattr(step, "pred_original_sample", expected)
        if expected is None:  # LCM's is c_skip · x + c_out · x0, so it is solved for x0
            skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
            expected = (step.denoised - skip * sample) / out
        assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        assert not torch.equal(ours, level.x0(output, sample))


# ------------------------------------------------------------------ half precision
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_moves_are_not_lost_to_rounding(pipe, kind):
    """The first, small moves of x0 in bfloat16 arrive in the sample as in float32: the scheduler
    steps in float32, and the result alone is rounded."""
    use(pipe, "DDIM", kind)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0]
    output, sample = (noise(1, 4, 16, 16, seed=k).bfloat16() for k in (1, 2))
    got = []

    class Step(Shortcut):
        def start(self, run):
            act = super().start(run)

            def kept(at):
                got.append(act(at))
                return got[-1]

            return kept

    seen = []
    original = type(scheduler).step

    def step(model_output, timestep, sample, *args, **kwargs):
        seen.append((model_output, sample))
        return original(scheduler, model_output, timestep, sample, *args, **kwargs)

    scheduler.step = step
    with steer(pipe, Brightness(), method=Step(strength=0.05, window=(0, 1))):
        previous = pipe.scheduler.step(output, t, sample).prev_sample
    del scheduler.step
    assert previous.dtype == torch.bfloat16
    given, x = seen[0]
    assert given.dtype == x.dtype == torch.float32
    level = noise_levels.level(scheduler, t)
    arrived = level.x0(given, x) - level.x0(output, sample)
    assert_close(arrived, got[0].delta, atol=1e-5, rtol=1e-3)


METHODS_OF_ALL_KINDS = [
    Shortcut(),
    Shortcut(fixed="noise"),
    Shortcut(travel=2),
    Particles(number=2, sharpness=1e4, every=1),
    Rollover(quota=2),
    Noise(iterations=2),
    Lookahead(number=2, steps=2),
    Backprop(),
    BestOf(number=2),
]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", METHODS_OF_ALL_KINDS, ids=lambda m: m.name)
def test_every_method_in_half_precision(pipe, dtype, method):
    use(pipe, "DDIM")
    pipe = pipe.to(dtype)
    before = Brightness()(draw(pipe).float())
    with steer(pipe, Brightness(), method=method) as s:
        image = draw(s)
    assert image.dtype == dtype and image.isfinite().all() and s.report.skipped == 0
    if not isinstance(method, (Particles, Rollover)):  # these draw noise, and these are two samples
        assert Brightness()(image.float()).mean() < before.mean()
    assert pipe.unet.dtype == pipe.vae.dtype == dtype


def test_a_gradient_through_float16_is_scaled():
    """A loss so small that its gradient in float16 is 0, and so large that it is infinite."""
    for size in (1e-7, 1.0, 1e4):
        x = torch.full((1, 4, 2, 2), 1.5, dtype=torch.float16, requires_grad=True)

        def loss(image, generators, size=size):
            return size * image.flatten(1).sum(1)

        run = Run(
            scheduler=None,
            decode=lambda x0: x0.float()[:, :3],
            objective=loss,
            generators=[torch.Generator()],
            streams=(),
            warn=pytest.fail,
        )
        value = run.gradient((x * 1.0) * 1.0, of=x).value
        expected = torch.full((1, 4, 2, 2), size)
        expected[:, 3] = 0
        assert value.dtype == torch.float32
        assert_close(value, expected, rtol=1e-2, atol=0)


# ------------------------------------------------------------------ modes of torch
@pytest.mark.parametrize("method", [Shortcut(), Backprop(), Noise(iterations=1)], ids=str)
def test_inference_mode_around_it_all(pipe, clip_folder, method):
    """The CLIP loaded, the context opened, the pipeline called, or all three in inference mode."""
    use(pipe, "DDIM")

    def images(load, make, call) -> torch.Tensor:
        with torch.inference_mode(load):
            clip = load_clip(str(clip_folder))
        with torch.inference_mode(make):
            s = steer(pipe, "a red fox", clip=clip, method=method)
        with s, torch.inference_mode(call):
            return draw(s)

    expected = images(False, False, False)
    for modes in ((True, False, False), (False, True, False), (False, False, True), (True,) * 3):
        assert torch.equal(images(*modes), expected), modes


def test_a_pipeline_loaded_in_inference_mode(generator_folder):
    with torch.inference_mode():
        pipe = diffusers.DiffusionPipeline.from_pretrained(generator_folder)
    with pytest.raises(ClipguideError, match="loaded in inference mode"):
        steer(pipe, Brightness(), method="backprop")


def test_autocast(pipe, clip):
    """The decoder and the CLIP work in their own types."""
    use(pipe, "DDIM")
    seen = []

    class Watched(Similarity):
        def __call__(self, image_B3HW, generators=None):
            seen.append((image_B3HW.dtype, torch.is_autocast_enabled("cpu")))
            return super().__call__(image_B3HW, generators)

    with steer(pipe, Watched(clip, "a red fox")) as s:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            draw(pipe)
    assert set(seen) == {(torch.float32, False)} and s.report.skipped == 0


def test_frames_with_a_judge(clip, judge):
    """A score a video, not a frame."""
    pipe, given = tiny("AnimateDiff")
    with steer(pipe, "a red fox", clip=clip, judge=judge, score_every=1) as s:
        draw_tiny(pipe, given)
    assert all(step.judge_score_B.shape == (2,) for step in s.report.trace)
    assert s.report.rows(1)[0]["judge"] == float(s.report.trace[0].judge_score_B[1])


# ------------------------------------------------------------------ refused, and in what order
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("FLUX", lambda pipe: _inverted(pipe), r"counts from clean to noise \(invert_sigmas\)"),
        ("SD 1.5", lambda pipe: setattr(pipe, "vae", None), "has no VAE: load one"),
        ("FLUX", lambda pipe: setattr(pipe, "vae", None), "has no VAE: load one"),
        ("SD 1.5", lambda pipe: setattr(pipe, "scheduler", None), "has no scheduler"),
    ],
)
def test_refused_before_anything_is_loaded(name, change, message):
    pipe, _ = tiny(name)
    change(pipe)
    with pytest.raises(ClipguideError, match=message):
        steer(pipe, "a fox", clip="a CLIP that is not there")


def _inverted(pipe) -> None:
    kind = type(pipe.scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, invert_sigmas=True)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("SD image to image", Noise(), "takes no `latents`"),
        ("DDPM", Noise(), "takes no `latents`"),
        ("AnimateDiff", BestOf(), "makes videos"),
        ("SD image to image", Shortcut(travel=2), "skips steps"),
    ],
)
def test_a_method_that_does_not_fit(name, method, message):
    pipe, _ = tiny(name)
    with pytest.raises(ClipguideError, match=message):
        steer(pipe, "a fox", clip="a CLIP that is not there", method=method)


def test_a_video_pipeline_is_refused_in_the_first_sentence():
    class LTXPipeline:
        video_processor = None

    with pytest.raises(ClipguideError, match="^LTXPipeline makes videos"):
        steer(LTXPipeline(), "a fox")


def test_a_cache_under_backprop():
    from diffusers import FirstBlockCacheConfig

    pipe, given = tiny("FLUX")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ClipguideError, match="disable_cache"):
        steer(pipe, Brightness(), method="backprop")
    pipe.transformer.disable_cache()
    with steer(pipe, Brightness(), method="backprop") as s:
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(ClipguideError, match="disable_cache"):
            draw_tiny(s, given)


def test_lookahead_where_there_are_no_latents():
    pipe, given = tiny("SD image to image")
    with steer(pipe, Brightness(), method=Lookahead(number=2, steps=4)) as s:
        assert draw_tiny(s, given, steps=5).isfinite().all()


def test_no_graph_is_left_in_a_schedulers_history(pipe):
    use(pipe, "DPM++ 2M")
    with steer(pipe, Brightness(), method="backprop") as s:
        s(**settings())
        held = [x for x in pipe.scheduler.model_outputs if x is not None]
    assert held and not any(x.requires_grad for x in held)


def test_nothing_of_it_warns(pipe, clip, judge):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        with steer(pipe, "a red fox", clip=clip, judge=judge) as s:
            draw(s, steps=2)
