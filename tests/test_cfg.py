"""The angle between a steering move and classifier-free guidance.

Shapes: B images, 3 channels of H x W pixels.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from tiny_pipelines import draw, noise, tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideWarning
from clipguide.guidance import steer
from clipguide.guidance.guidance_direction import GuidanceHook, angle
from clipguide.guidance.noise_levels import level
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Bright(Objective):
    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


class Recorder:
    """A scheduler's step of one's own, which notes what it is called with."""

    def __init__(self, scheduler):
        self.original, self.seen = scheduler.step, []
        scheduler.step = self

    def __call__(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        self.seen.append((model_output, timestep, sample))
        return self.original(model_output, timestep, sample, return_dict=return_dict)


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2 (v)"])
def test_angle_by_hand(name):
    """Both halves run alone, their x0 and that of what the scheduler got written out."""
    pipe, settings = tiny(name)
    recorder = Recorder(pipe.scheduler)
    with steer(pipe, Bright(), strength=0.3, window=(0, 1)) as s:
        draw(pipe, settings, guidance_scale=5.0)
    assert len(s.report.trace) == len(recorder.seen) == 3
    for trace, (output, t, sample) in zip(s.report.trace, recorder.seen):
        alpha_bar = pipe.scheduler.alphas_cumprod[t].double()
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x = sample.double()

        def x0(model_output, x=x, alpha=alpha, sigma=sigma):
            if name == "SD 1.5":
                return (x - sigma * model_output.double()) / alpha
            return alpha * x - sigma * model_output.double()

        with torch.no_grad():
            uncond, cond = (
                pipe.unet(sample, t, settings[words]).sample
                for words in ("negative_prompt_embeds", "prompt_embeds")
            )
        move = (x0(output) - x0(uncond + 5.0 * (cond - uncond))).flatten(1)
        way = (x0(cond) - x0(uncond)).flatten(1)
        expected = torch.cosine_similarity(move, way).acos().rad2deg()
        assert_close(trace.angle_B.double(), expected, atol=0.1, rtol=0)
        assert trace.sigma == pytest.approx(float(sigma))
        assert ((trace.angle_B > 1) & (trace.angle_B < 179)).all()
    rows = [row["angle"] for row in s.report.rows(1)]
    assert rows == [float(trace.angle_B[1]) for trace in s.report.trace]


SCALE = {"mini": "map_guidance_scale"}
# Mini and Stable Cascade evaluate the prompt first; HiDream negates what its transformer returns;
# PixArt and Hunyuan-DiT have the channels of a learned variance.
BOTH = (
    "SD 1.5", "SD 2 (v)", "SD ControlNet", "SDXL", "SD3", "Sana", "PixArt-Sigma", "Hunyuan-DiT",
    "HiDream", "mini", "Stable Cascade",
)  # fmt: skip


def with_both(name: str):
    """A tiny pipeline and its settings, with a negative prompt where one must be given."""
    pipe, settings = tiny(name)
    if name == "Stable Cascade":
        for key in ("negative_prompt_embeds", "negative_prompt_embeds_pooled"):
            settings[key] = noise(2, 1, 16, seed=9)
    return pipe, settings


class First(Exception):
    """The first step of a run is known."""


def first_step(name: str, scale: float):
    """x0 and the direction of guidance at the first step under a scale of guidance."""
    pipe, settings = with_both(name)
    hook, scheduler = GuidanceHook(pipe).__enter__(), pipe.scheduler

    def step(model_output, timestep, sample, *_, generator=None, **__):
        here = level(scheduler, timestep)
        hook.find(model_output, sample)
        raise First(here.x0(model_output, sample), hook.direction(here, sample))

    scheduler.step = functools.wraps(scheduler.step)(step)
    with pytest.raises(First) as caught:
        draw(pipe, settings, **{SCALE.get(name, "guidance_scale"): scale})
    hook.__exit__()
    return caught.value.args


@pytest.mark.parametrize("name", BOTH)
def test_the_direction_is_what_more_guidance_adds(name):
    """A scale of 7 against one of 4: three times the direction, with its sign."""
    (less, direction), (more, again) = first_step(name, 4.0), first_step(name, 7.0)
    assert torch.equal(direction, again)
    size = direction.abs().max()
    assert size > 0
    assert_close((more - less) / size, 3 * direction / size, atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", BOTH)
def test_outside_the_window_is_the_prompt_alone(name):
    """As with a scale just above 1."""
    pipe, settings = with_both(name)
    scale = SCALE.get(name, "guidance_scale")
    images = []
    for given, window in ((4.0, (0.0, 1e-7)), (4.0, None), (1.000001, None)):
        with steer(pipe, Bright(), strength=0.0, cfg_window=window) as s:
            images.append(draw(s, {**settings, scale: given}))
    found, guided, alone = images
    assert_close(found, alone, atol=2e-4, rtol=0)
    assert (found - guided).abs().max() > 1e-2


def test_a_rescaled_sum():
    """As `guidance_rescale` does it, with halves that point the same way."""
    pipe, _ = tiny("SD 1.5")
    a, move = noise(1, 4, 8, 8) + 3, 0.02 * (noise(1, 4, 8, 8, seed=1) + 3)
    pipe._guidance_scale, sample = 7.5, torch.zeros(1, 4, 8, 8)
    for first, second, sign in ((a, a + move, 1), (a + move, a, 1), (a, a + move, -1)):
        hook = GuidanceHook(pipe)
        hook._keep(None, (), (torch.cat([first, second]),))
        hook.find(sign * 0.7 * (a + 7.5 * move), sample)
        assert_close(hook.conditional(), sign * (a + move))


def test_angle():
    move = noise(4, 3, 5)
    other = torch.stack([move[0], -3 * move[1], move[2], 0 * move[3]])
    across = move[2].roll(1)
    other[2] = across - move[2] * (across * move[2]).sum() / move[2].square().sum()
    assert_close(angle(move, other)[:3], torch.tensor([0.0, 180.0, 90.0]), atol=1e-3, rtol=0)
    assert angle(move, other)[3].isnan()


@pytest.mark.parametrize("method", ["lookahead", "backprop"])
def test_other_methods_have_one_too(method):
    pipe, settings = tiny("SD 1.5")
    with steer(pipe, Bright(), method=method) as s:
        draw(s, settings)
    assert s.report.trace[-3].angle_B.isfinite().all()


def test_an_image_that_is_not_moved_has_no_angle():
    class Half(Objective):
        def __call__(self, image_B3HW, generators=None):
            return image_B3HW.flatten(1).mean(1) * torch.tensor([1.0, math.nan])

    pipe, settings = tiny("SD 1.5")
    with pytest.warns(ClipguideWarning, match="not a number"), steer(pipe, Half()) as s:
        draw(pipe, settings)
    assert "angle" in s.report.rows(0)[0]
    assert all(row.keys() == {"step", "noise", "sigma"} for row in s.report.rows(1))


@pytest.mark.parametrize("name", ["FLUX", "Qwen-Image", "LCM", "DDPM"])
def test_absent_where_it_cannot_be_known(name):
    """No guidance, or the two run one after the other."""
    pipe, settings = tiny(name)
    extra = {"true_cfg_scale": 4.0} if name == "Qwen-Image" else {}
    with steer(pipe, Bright()) as s:
        draw(pipe, settings, **extra)
    assert s.report.steered and all(trace.angle_B is None for trace in s.report.trace)
    assert all("angle" not in row for row in s.report.rows(0))


def test_absent_without_guidance_or_move():
    pipe, settings = tiny("SD 1.5")
    with steer(pipe, Bright(), window=(0, 1)) as s:
        draw(pipe, settings, guidance_scale=1.0)
        assert all(trace.angle_B is None for trace in s.report.trace)
        draw(pipe, settings)  # the same context, now with guidance
        assert all(trace.angle_B is not None for trace in s.report.trace)
    with steer(pipe, Bright(), window=(0.5, 1)) as s:
        draw(pipe, settings, steps=4)
    seen = [trace.angle_B is not None for trace in s.report.trace]
    assert seen == [trace.noise >= 0.5 for trace in s.report.trace] and not all(seen)
