"""Score distillation: the target is the pipeline's own x0, and the gradient is the distance to it.

Shapes: B images, C channels of h x w latents.
"""

from __future__ import annotations

import pytest
import torch
from clipguide.pipelines import loading
from test_mini_pipeline import pipe as mini_pipe  # noqa: F401 (a fixture)
from tiny_pipelines import (
    BATCH,
    controlnet,
    ddim,
    flux,
    img2img,
    inpaint,
    noise,
    stable_diffusion,
    xl,
)
from torch.testing import assert_close

from clipguide import Reward, load_pipeline
from clipguide.errors import ClipguideError, UsageError
from clipguide.rewards.sds import DRAFTS, FIRST, LAST, STRIDE, Distilled, fitting, recorded

PROMPTS = ["a fox", "an owl"]


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.fixture(params=["1", "1 v", "xl", "mini"])
def pipe(request, mini_pipe, monkeypatch):  # noqa: F811
    """A tiny pipeline that reads prompts: of Stable Diffusion 1 and XL, and mini."""
    if request.param == "mini":
        return mini_pipe
    if request.param == "xl":
        made, settings = xl()
        made.scheduler = ddim()
        names = ("prompt_embeds", "negative_prompt_embeds")
        names += tuple(f"{kind}pooled_prompt_embeds" for kind in ("", "negative_"))
    else:
        prediction = "v_prediction" if "v" in request.param else "epsilon"
        made, settings = stable_diffusion(prediction=prediction)
        names = ("prompt_embeds", "negative_prompt_embeds")
    given = tuple(settings[name] for name in names)
    monkeypatch.setattr(made, "encode_prompt", lambda *args, **more: given)
    made.set_progress_bar_config(disable=True)
    return made


def x0_of(pipe, output, latents, step):
    """x0 by the scheduler itself: one step of DDIM from there to the end."""
    pipe.scheduler.set_timesteps(1)
    return pipe.scheduler.step(output, step, latents).pred_original_sample


def test_the_unet_is_called_as_the_pipeline_calls_it(pipe):
    """One step of the pipeline from given latents ends at x0."""
    size = (32, 32)
    shape = pipe.vae.config.latent_channels, *(side // pipe.vae_scale_factor for side in size)
    latents = noise(BATCH, *shape)
    guided = recorded(pipe, PROMPTS, seeds(1, 2), size)
    settings = {"height": size[0], "width": size[1], "num_inference_steps": 1}
    drawn = pipe(
        PROMPTS, latents=latents, generator=seeds(1, 2), output_type="latent", **settings
    ).images
    step = pipe.scheduler.timesteps[0]
    with torch.no_grad():
        assert_close(x0_of(pipe, guided(latents, step), latents, step), drawn)


def test_the_loss_is_the_distance_to_what_the_generator_sees(pipe):
    """Against the same steps by diffusers' own parts: encode, add noise, denoise, decode."""
    height, width = fitting(pipe, 32, 32)
    image = torch.rand(BATCH, 3, height, width, generator=seeds(3)[0]).requires_grad_()
    objective = Distilled(pipe, PROMPTS).at(0.25)
    loss = objective(image, seeds(1, 2))
    (gradient,) = torch.autograd.grad(loss.sum(), image)
    config, step = pipe.vae.config, round((FIRST + 0.25 * (LAST - FIRST)) * 999)
    mean, deviation = (
        torch.tensor(config.get(name) or [value]).view(1, -1, 1, 1)
        for name, value in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    with torch.no_grad():
        latents = pipe.vae.encode(image * 2 - 1).latent_dist.mode()
        latents = (latents - mean) / deviation * config.scaling_factor
        drawn = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in seeds(1, 2)])
        noisy = pipe.scheduler.add_noise(latents, drawn, torch.tensor([step]))
        output = recorded(pipe, PROMPTS, seeds(1, 2), (height, width))(noisy, torch.tensor(step))
        x0 = x0_of(pipe, output, noisy, step) * deviation / config.scaling_factor + mean
        target = (pipe.vae.decode(x0).sample / 2 + 0.5).clamp(0, 1)
    assert_close(loss, (image - target).square().mean((1, 2, 3)))
    assert_close(gradient, 2 * (image - target) / image[0].numel())


def test_one_prompt_is_for_all_images(pipe):
    image = torch.rand(BATCH, 3, *fitting(pipe, 32, 32), generator=seeds(3)[0])
    one, each = (Distilled(pipe, prompts) for prompts in (["a fox"], ["a fox"] * BATCH))
    assert_close(one(image, seeds(1, 2)), each(image, seeds(1, 2)))


def test_what_the_generator_chose_stays(mini_pipe):  # noqa: F811
    """The map depends on the seed of a generator, and not on what was drawn from it since; so a run
    that was stopped goes on towards the same image. The noise is new at each step."""
    image = torch.rand(1, 3, *fitting(mini_pipe, 32, 32), generator=seeds(3)[0])
    (generator,) = seeds(1)
    first, second = (Distilled(mini_pipe, ["a fox"]) for _ in range(2))
    torch.randn(5, generator=generator)
    state = generator.get_state()
    loss = first(image, [generator])
    assert list(first._guided) == [(1, *image.shape[-2:])]
    assert not torch.equal(first(image, [generator]), loss)
    (again,) = seeds(99)
    again.set_state(state)
    assert torch.equal(second(image, [again]), loss)
    assert not torch.equal(second(image, seeds(2)), second(image, seeds(3)))


def test_the_best_draft_is_chosen(mini_pipe):  # noqa: F811
    """Of eight seeds, the map of the one whose draft scores best; noise alone is not chosen."""
    size = fitting(mini_pipe, 32, 32)
    objective, seen = Distilled(mini_pipe, ["a fox"]), []

    def score(image):
        seen.append(image)
        return -(torch.arange(len(image)) - 5.0).abs()  # the sixth

    objective.choose(3, score, (32, 32))
    image = torch.rand(1, 3, *size, generator=seeds(3)[0])
    objective(image, seeds(3))
    assert len(seen[0]) == DRAFTS and len({one.sum().item() for one in seen[0]}) == DRAFTS
    latents, step = noise(1, 8, *(side // mini_pipe.vae_scale_factor for side in size)), 500
    with torch.no_grad():
        for seed, same in ((3 + 5 * STRIDE) % 2**32, True), (3, False):
            other = recorded(mini_pipe, ["a fox"], seeds(seed), size)
            chosen = objective._guided[(3, *size)]
            outputs = [guided(latents, torch.tensor(step)) for guided in (chosen, other)]
            assert torch.equal(*outputs) == same
    wide = torch.rand(1, 3, size[0] // 2, size[1] * 2, generator=seeds(3)[0])
    objective(wide, seeds(3))  # as a canvas that grows may have other proportions
    assert len(objective._guided) == 2 and objective._chosen == {3: (3 + 5 * STRIDE) % 2**32}
    plain, _ = stable_diffusion()
    objective = Distilled(plain, ["a fox"])
    objective.choose(3, score, (32, 32))
    assert len(seen) == 1 and not objective._chosen


def test_the_size_that_the_generator_knows(pipe):
    """Images of other sizes are compared at about the generator's own, in their proportions."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    for height, width in ((16, 16), (64, 64), (30, 30)):
        assert fitting(pipe, height, width) == (side, side)
    assert fitting(pipe, 20, 80) == (side // 2, side * 2)
    assert min(fitting(pipe, 10_000, 8)) == 8
    image = torch.rand(1, 3, 64, 128, generator=seeds(3)[0]).requires_grad_()
    loss = Distilled(pipe, PROMPTS)(image.expand(BATCH, -1, -1, -1), seeds(1, 2))
    loss.sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


def test_as_a_reward():
    """The embedded generator; a prompt of a drawing fits it better than another."""
    pipe = load_pipeline("mini")
    drawn = pipe("a strawberry", generator=seeds(5), num_inference_steps=8, output_type="pt").images
    reward = Reward("sds", "a strawberry")
    other = reward.towards("a blue car")
    assert reward.at(0.2).score(drawn) != reward.at(0.6).score(drawn)
    assert reward.score(drawn) > other.score(drawn)
    assert len(reward.fingerprint) == 64 == len(other.fingerprint)
    assert Reward("clip").at(0.5).differentiable


def test_several_images_of_each_prompt(mini_pipe):  # noqa: F811
    """Images come prompt by prompt, as for every objective."""
    image = torch.rand(4, 3, *fitting(mini_pipe, 32, 32), generator=seeds(3)[0])
    each = Distilled(mini_pipe, ["a fox"] * 2 + ["an owl"] * 2)
    both = Distilled(mini_pipe, PROMPTS)
    assert_close(both(image, seeds(1, 2, 3, 4)), each(image, seeds(1, 2, 3, 4)))
    with pytest.raises(ClipguideError, match="2 prompts"):
        both(image[:3])


def test_half_precision(monkeypatch):
    """A VAE that overflows in float16, as its configuration says, stays in float32."""
    for upcast, dtype in ((True, torch.float32), (False, torch.float16)):
        made, settings = xl()
        made.scheduler = ddim()
        made.vae.register_to_config(force_upcast=upcast)
        given = [settings[n].half() for n in ("prompt_embeds", "negative_prompt_embeds")]
        given += [settings[f"{kind}pooled_prompt_embeds"].half() for kind in ("", "negative_")]
        made.encode_prompt = lambda *args, given=given, **more: given
        made.set_progress_bar_config(disable=True)
        made.to(torch.float16)
        monkeypatch.setattr(loading, "load_pipeline", lambda *args, made=made, **more: made)
        image = torch.rand(BATCH, 3, 32, 32, requires_grad=True)
        loss = Reward("sds", PROMPTS, dtype="float16")(image)
        (gradient,) = torch.autograd.grad(loss.sum(), image)
        assert made.vae.dtype == dtype and made.unet.dtype == torch.float16
        assert loss.isfinite().all() and gradient.abs().sum() > 0


def test_generators_of_other_kinds_are_refused():
    pag = stable_diffusion("PAG", pag_applied_layers=["mid"])
    for made, _ in (flux(), inpaint(), img2img(), controlnet(), pag):
        name = type(made).__name__
        with pytest.raises(UsageError, match=f"draws from text alone with a U-Net.*not a {name}"):
            Distilled(made, ["a fox"])
    with pytest.raises(UsageError, match="sds reads texts"):
        Reward("sds", "a fox:-1").load()
    with pytest.raises(UsageError, match="There is no model 'minni'"):
        Reward("sds=minni").load()
