"""Runs of a pipeline in the context: where they begin and end, what is patched and put back."""

from __future__ import annotations

import copy
import importlib
import pickle

import diffusers
import pytest
import torch
from test_guidance import draw, use
from test_methods import Brightness, settings
from tiny_pipelines import draw as draw_tiny
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, ClipguideWarning
from clipguide.guidance import Backprop, BestOf, Particles, Rollover, Shortcut, steer
from clipguide.guidance.precision import rms
from clipguide.guidance.run import Outcome
from clipguide.guidance.tap import Tapped
from clipguide.objectives import Similarity

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Steps:
    """An on_step that keeps what it is told."""

    def __init__(self):
        self.seen = []

    def __call__(self, step):
        self.seen.append((step.index, step.total))


# ------------------------------------------------------------------ totals and ends
TAKEN = {  # how many evaluations these take, of 6 asked for
    "SD image to image": {},
    "SD inpainting": {},
    "SDXL image to image": {},
    "SDXL inpainting": {},
    "LCM": {},
    "Sana Sprint": {},
    "SDXL": {"denoising_end": 0.5},
    "FLUX": {},
    "PixArt-Sigma": {},
    "DDPM": {},
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_total_is_what_the_pipeline_takes(name, clip):
    """And its last step is scored."""
    pipe, given = tiny(name)
    told = Steps()
    objective = Similarity(clip, "a fox", views=None)
    with steer(pipe, objective, on_step=told, score_every=100) as s:
        draw_tiny(pipe, {**given, **TAKEN[name]}, steps=6)
    indices = [index for index, _ in told.seen]
    assert indices == list(range(len(told.seen)))
    assert {total for _, total in told.seen} == {len(told.seen)}
    scored = [step.index for step in s.report.trace if step.guide_score_B is not None]
    assert scored == [0, len(told.seen) - 1]


def interrupted(pipe, after: int) -> dict:
    """A callback that stops a pipeline, as the documentation of diffusers has it."""

    def stop(pipe, index, timestep, kwargs):
        if index == after:
            pipe._interrupt = True
        return kwargs

    return {"callback_on_step_end": stop}


def test_an_interrupted_run_is_scored_where_it_stopped(pipe, clip):
    use(pipe, "DDIM")
    objective = Similarity(clip, "a fox", views=None)
    with steer(pipe, objective, score_every=100) as s:
        draw(pipe, steps=8, **interrupted(pipe, 3))
    scored = [step.index for step in s.report.trace if step.guide_score_B is not None]
    assert (len(s.report.trace), scored) == (4, [0, 3])
    with steer(pipe, objective, score_every=100) as s:
        draw(s, steps=8, **interrupted(pipe, 3))
        assert s.report.trace[-1].guide_score_B is not None  # told as the call ends


@pytest.mark.parametrize("output_type", ["pil", "latent"])
@pytest.mark.parametrize("name", ["SD image to image", "SD inpainting", "LCM", "SD 1.5"])
def test_backprop_at_every_output_type(name, output_type):
    pipe, given = tiny(name)
    with steer(pipe, Brightness(), method=Backprop()) as s:
        whole = s(**given, num_inference_steps=4, output_type=output_type).images
        more = interrupted(pipe, 1)
        part = s(**given, num_inference_steps=4, output_type=output_type, **more).images
    for images in (whole, part):
        assert output_type == "pil" or not images.requires_grad


def test_rollover_ends_where_the_pipeline_does():
    """Half of SDXL's schedule, its levels alone, and all proposals."""
    pipe, given = tiny("SDXL")
    seen = []
    pipe.unet.register_forward_hook(lambda module, args, out: seen.append(float(args[1])))
    draw_tiny(pipe, given, steps=6, denoising_end=0.5)
    plain, seen[:] = list(seen), []
    with steer(pipe, Brightness(), method=Rollover(quota=3)) as s:
        image = draw_tiny(pipe, given, steps=6, denoising_end=0.5)
    assert sorted(set(seen), reverse=True) == plain and len(seen) == 3 * len(plain)
    assert len(s.report.trace) == len(seen) and image.isfinite().all()


# ------------------------------------------------------------------ who is steered
def test_a_pipeline_that_shares_the_parts_is_not_steered(pipe, clip):
    use(pipe, "DDIM")
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    assert other.scheduler is pipe.scheduler
    plain = draw(pipe)
    with steer(pipe, "a red fox", clip=clip) as s:
        assert torch.equal(draw(other), plain)
        assert s.report.trace == []
        steered = draw(pipe)
        assert not torch.equal(steered, plain)
        assert torch.equal(draw(other), plain) and torch.equal(draw(pipe), steered)


def test_replaying_a_tape_mutes_nobody_else(pipe, clip, tmp_path):
    use(pipe, "DDIM")
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    plain = draw(other)
    with steer(pipe, "a red fox", clip=clip, tape=tmp_path) as s:
        draw(s)
    with steer(pipe, "a red fox", clip=clip, tape=tmp_path):
        assert torch.equal(draw(other), plain)


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_made_inside_is_clean(pipe, clip, how):
    use(pipe, "DPM++ 2M")
    plain = draw(pipe)
    kind = type(pipe.scheduler)
    with steer(pipe, "a red fox", clip=clip) as s:
        assert isinstance(pipe.scheduler, Tapped) and type(pipe.scheduler).__name__ == kind.__name__
        scheduler = how(pipe.scheduler)
        assert type(scheduler) is kind and "step" not in vars(scheduler)
        steered = draw(pipe)
        seen = len(s.report.trace)
    other = copy.copy(pipe)
    other.scheduler = scheduler
    assert torch.equal(draw(other), plain) and len(s.report.trace) == seen
    assert not torch.equal(steered, plain)


def test_a_whole_pipeline_copied_inside_is_clean(pipe, clip):
    use(pipe, "Euler a")
    plain = draw(pipe)
    with steer(pipe, "a red fox", clip=clip):
        other = copy.deepcopy(pipe)
        assert torch.equal(draw(other), plain)
    assert torch.equal(draw(other), plain) and torch.equal(draw(pipe), plain)


def test_a_step_that_is_patched_inside(pipe, clip):
    """The user's function goes around the steered step, and is gone when it is deleted."""
    use(pipe, "DDIM")
    asked = []
    with steer(pipe, "a red fox", clip=clip):
        steered = draw(pipe)
        inner = pipe.scheduler.step

        def step(*args, **kwargs):
            asked.append(1)
            return inner(*args, **kwargs)

        pipe.scheduler.step = step
        assert torch.equal(draw(pipe), steered) and len(asked) == 4
        del pipe.scheduler.step
        assert torch.equal(draw(pipe), steered) and len(asked) == 4


def test_an_enter_that_raises_leaves_nothing(pipe, clip, monkeypatch):
    before = dict(pipe.__dict__)
    hooks = dict(pipe.unet._forward_hooks)
    s = steer(pipe, "a red fox", clip=clip)
    module = importlib.import_module("clipguide.guidance.steering")
    monkeypatch.setattr(module, "tap", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError), s:
        pass
    assert pipe.__dict__ == before and pipe.unet._forward_hooks == hooks


# ------------------------------------------------------------------ the call
def test_a_callback_in_kwargs_is_called(pipe, clip):
    """`callback`, which diffusers collects in **kwargs."""
    called = []
    with pytest.warns(FutureWarning), steer(pipe, "a red fox", clip=clip) as s:
        s(**settings(callback=lambda step, t, latents: called.append(step), callback_steps=1))
    assert called == [0, 1, 2, 3]


class Plain(diffusers.StableDiffusionPipeline):
    """A subclass with a __call__ of its own, as people write them."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_a_subclass_with_a_plain_call(pipe, clip):
    other = Plain(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with steer(pipe, "a red fox", clip=clip):
        steered = draw(pipe)
    with steer(other, "a red fox", clip=clip) as s:
        assert torch.equal(draw(s), steered)
    with steer(other, "a red fox", clip=clip, method=BestOf(number=2)) as s:
        assert len(draw(s)) == 2
    with (
        pytest.raises(ClipguideError, match="Plain samples without gradients"),
        steer(other, "a red fox", clip=clip, method="backprop") as s,
    ):
        draw(s)


# ------------------------------------------------------------------ every, best-of, eta
@pytest.mark.parametrize("name", ["Heun", "KDPM2", "PNDM"])
def test_every_counts_steps(pipe, name):
    """Correctors follow their predictors: whole steps are steered, and whole steps are not."""
    kind = {"Heun": "HeunDiscreteScheduler", "KDPM2": "KDPM2DiscreteScheduler"}.get(name)
    if kind:
        pipe.scheduler = getattr(diffusers, kind)(
            beta_schedule="scaled_linear", prediction_type="v_prediction"
        )
    else:
        use(pipe, "PNDM")
    with steer(pipe, Brightness(), every=2, window=(0, 1)) as s:
        draw(pipe, steps=6)
    due = [step.loss_B is not None for step in s.report.trace]
    if name == "PNDM":  # its first step is of two evaluations
        assert due == [True, True, False, True, False, True, False]
    else:
        assert due == [True, True, False, False] * 2 + [True, True, False]


@pytest.mark.parametrize("fixed", ["sample", "noise"])
@pytest.mark.parametrize("scheduler", ["DDIM", "Heun", "PNDM"])
def test_between_two_gradients_the_last_direction_holds(pipe, scheduler, fixed):
    """Of a loss that is linear in x0, the gradient has one direction, so `every` changes only the
    number of gradients; with another strength, the image is another."""
    if scheduler == "Heun":
        pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    else:
        use(pipe, scheduler)
    taken = []

    def slope(image_B3HW):
        taken.append(1)
        return (image_B3HW * torch.linspace(-1, 1, image_B3HW.shape[-1])).flatten(1).sum(1)

    def image(every, strength=0.4):
        taken.clear()
        method = Shortcut(every=every, strength=strength, fixed=fixed)
        with steer(pipe, slope, method=method, decoder=lambda x0: x0[:, :3] * 0.1 + 0.5) as s:
            return draw(pipe, steps=6), len(taken), s.report.steered

    each, gradients, steered = image(1)
    assert gradients == steered
    for every in (2, 3):
        found, fewer, moved = image(every)
        assert_close(found, each, atol=1e-4, rtol=0)
        assert fewer < gradients and moved == steered
    assert (image(3, strength=0.1)[0] - each).abs().max() > 0.01


def test_a_held_move_has_todays_length(pipe):
    """The size of each move is that of its own noise level, weight and factor, whatever the step at
    which its direction was found."""
    use(pipe, "DDIM")
    moves, seen = [], []

    class Watched(Shortcut):
        def hold(self, run, at):
            outcome = super().hold(run, at)
            moves.append(rms(outcome.delta) / rms(at.x0))
            seen.append(run.weight * self.size(at.level.noise) * run.factor_B)
            run.factor_B = torch.tensor([1.0, 0.5])
            return outcome

    method = Watched(every=5, strength=0.3, window=(0, 1))
    with steer(pipe, Brightness(), method=method):
        draw(pipe, seeds=(1, 2), steps=5)
    assert len(moves) >= 3
    assert_close(torch.stack(moves), torch.stack(seen))
    assert_close(moves[-1][1] / moves[-1][0], torch.tensor(0.5))


def test_a_subclass_that_keeps_no_direction_does_nothing_in_between(pipe):
    use(pipe, "DDIM")

    class Still(Shortcut):
        def start(self, run):
            return lambda at: Outcome(at.model_output, at.sample)

    with steer(pipe, Brightness(), method=Still(every=2)):
        moved = draw(pipe)
    assert torch.equal(moved, draw(pipe))


def test_best_of_reports_the_kept(pipe, clip):
    """The trace of each image is that of its own best candidate."""
    use(pipe, "DDIM")
    method = BestOf(number=3, each=Shortcut(strength=0.3))
    with steer(pipe, "a red fox", clip=clip, method=method, trace=True) as s:
        draw(s, seeds=range(5))
    best = torch.stack(s.report.candidates).argmax(0).tolist()
    assert len(s.report.trace) == 4 and len(set(best)) > 1
    for i, k in enumerate(best):
        with steer(pipe, "a red fox", clip=clip, method=method.each, trace=True) as alone:
            draw(pipe, seeds=[seed + k * 1_000_000 for seed in range(5)])
        assert s.report.rows(i) == alone.report.rows(i)


def test_particles_with_the_pipelines_own_eta(pipe):
    """The noise is the scheduler's, once: without resampling the images are the plain ones."""
    use(pipe, "DDIM")
    seeds = (1, 2, 3, 4)
    plain = draw(pipe, seeds=seeds, eta=1.0)
    with steer(pipe, Brightness(), method=Particles(sharpness=0.0)):
        assert torch.equal(draw(pipe, seeds=seeds, eta=1.0), plain)
        assert not torch.equal(draw(pipe, seeds=seeds), plain)
    with (
        pytest.raises(ClipguideError, match="eta=0.5 draws noise"),
        steer(pipe, Brightness(), method="rollover"),
    ):
        draw(pipe, eta=0.5)
    with pytest.raises(ClipguideError, match="eta must be from 0 to 1"):
        Particles(eta=1.5)


@pytest.mark.parametrize(
    "method",
    [
        Shortcut(strength=0.5, window=(0, 1)),
        Particles(number=2, sharpness=1e4, every=1),
        Particles(number=2, sharpness=1e4, every=1, potential="max"),
        Rollover(quota=3),
    ],
    ids=["shortcut", "particles", "particles, max", "rollover"],
)
@pytest.mark.parametrize("decoder", ["vae", "linear"])
def test_the_last_score_is_the_finished_images(clip, method, decoder):
    """Though the method acts at the last step, and particles change their places in it."""
    pipe, given = tiny("SD3")  # a flow: the last of 3 steps is far from clean
    similarity = Similarity(clip, "a red fox", views=None)
    told = []
    with steer(
        pipe, similarity, method=method, decoder=decoder,
        on_step=lambda step: told.append(step.preview()),
    ) as s:  # fmt: skip
        image_B3HW = draw_tiny(pipe, given, steps=3)
    assert_close(told[-1].clamp(0, 1), image_B3HW, atol=2e-3, rtol=0)
    assert_close(s.report.guide_score_B, similarity.score(image_B3HW).cpu(), atol=1e-3, rtol=0)


def test_another_prompt_in_the_same_context(pipe, clip, judge):
    use(pipe, "DDIM")
    with steer(pipe, "a zebra", clip=clip, judge=judge) as s:
        zebra = draw(pipe)
    with steer(pipe, "a red fox", clip=clip, judge=judge) as s:
        fox = draw(pipe)
        s.prompt = "a zebra"
        assert torch.equal(draw(pipe), zebra) and not torch.equal(fox, zebra)
        assert s.judge.prompts == s.guide.prompts
    with steer(pipe, Brightness()) as s, pytest.raises(ClipguideError, match="similarity alone"):
        s.prompt = "a zebra"


def test_no_step_outside_of_the_window_is_warned_of_once(pipe):
    with pytest.warns(ClipguideWarning, match="No step was steered"):
        with steer(pipe, Brightness(), strength="0.1@0.999..1"):
            draw(pipe, steps=2)


class Tiles(diffusers.StableDiffusionPipeline):
    """Goes on with tiles, as DemoFusion: as many at a time as there are left, on the same
    timesteps."""

    def __call__(self, **settings):
        latents = super().__call__(**settings, output_type="latent").images
        self.after = []
        for t in self.scheduler.timesteps:
            for number in (4, 1):
                tile = latents[:1].repeat(number, 1, 1, 1)
                self.after.append(self.scheduler.step(tile / 2, t, tile).prev_sample)
        return latents


def test_steps_on_tiles_after_the_run_are_left_alone():
    """A batch that changed was a crash; a tile alone is no image to steer. Said once."""
    made, given = tiny("SD 1.5")
    pipe = Tiles(**made.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    told = Steps()
    with (
        pytest.warns(ClipguideWarning, match="after the last that it announced"),
        steer(pipe, Brightness(), like="StableDiffusionPipeline", on_step=told) as s,
    ):
        for _ in range(2):  # the next call is steered again
            latents = pipe(**given, num_inference_steps=3)
            assert sum("after the last" in warning for warning in s.report.warnings) == 1
    assert told.seen == 2 * [(0, 3), (1, 3), (2, 3)]
    expected = iter(pipe.after)
    for t in pipe.scheduler.timesteps:
        for number in (4, 1):
            tile = latents[:1].repeat(number, 1, 1, 1)
            assert torch.equal(pipe.scheduler.step(tile / 2, t, tile).prev_sample, next(expected))
