"""The ComfyUI nodes: the hook against `steer`, and scores against the library's own.

test_comfyui_itself.py has them in ComfyUI.

Shapes: B images, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from tiny_pipelines import BATCH, BETAS, noise, tiny
from torch import nn
from torch.testing import assert_close

from clipguide import (
    Objective,
    Range,
    Reward,
    Similarity,
    TotalVariation,
    UsageError,
    load_clip,
    steer,
)
from clipguide.errors import ClipguideError, ClipguideWarning
from clipguide.guidance import Shortcut
from clipguide.images import to_pil
from clipguide.rewards import REWARDS, register_reward

FOLDER = Path(__file__).resolve().parents[1] / "pipelines/comfyui"


def load(folder: Path):
    """As ComfyUI loads a folder of custom_nodes."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pack = load(FOLDER)
node = pack.steering


class Autoencoder(nn.Module):
    """Decodes to a tensor, as ComfyUI's do."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def decode(self, latents_BChw):
        return self.vae.decode(latents_BChw, return_dict=False)[0]


class Variance:
    """x = x0 + σε."""

    sigma_data = 1.0

    def noise_scaling(self, sigma, noise, latent_image):
        return noise * sigma + latent_image


class Flow:
    """x = (1 − σ)x0 + σε."""

    def noise_scaling(self, sigma, noise, latent_image):
        return sigma * noise + (1 - sigma) * latent_image


class Model:
    """A U-Net that is sampled by Euler's steps, with what the node needs of ComfyUI's patcher."""

    load_device = torch.device("cpu")

    def __init__(self, pipe):
        self.pipe, self.hooks, self.model_sampling = pipe, [], Variance()

    def clone(self):
        other = copy.copy(self)
        other.hooks = list(self.hooks)
        return other

    def set_model_sampler_post_cfg_function(self, function):
        self.hooks.append(function)

    def process_latent_out(self, latents):
        return latents / self.pipe.vae.config.scaling_factor

    def sample(self, latents_BChw, words, steps: int = 4):
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        x = latents_BChw * scheduler.init_noise_sigma
        sigmas = scheduler.sigmas
        for t, sigma, after in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
            out = self.pipe.unet(x / (sigma**2 + 1).sqrt(), t, words, return_dict=False)[0]
            x0 = x - sigma * out
            for hook in self.hooks:
                x0 = hook(self.arguments(x0, float(sigma)))
            x = x0 + (x - x0) / sigma * after
        return x

    def arguments(self, x0_BChw, sigma: float):
        return {"denoised": x0_BChw, "sigma": torch.full((len(x0_BChw),), sigma), "model": self}


@pytest.fixture
def model():
    pipe, settings = tiny("SD 1.5")
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    model = Model(pipe)
    model.words = settings["prompt_embeds"]
    return model


@pytest.fixture
def vae(model):
    return SimpleNamespace(first_stage_model=Autoencoder(model.pipe.vae), latent_dim=2)


def decoding(vae):
    return node._decoding(vae.first_stage_model, "cpu")


def test_the_vae_is_not_touched(vae):
    """The decoder is a clean one: its decoding half in float32, without the hooks of the live one,
    which stays in half precision, and trainable as it was; images and gradients are its own."""
    live, seen = vae.first_stage_model.half(), []
    live.vae.decoder.conv_in.register_forward_hook(lambda *_: seen.append(1))
    before = [(p.dtype, p.requires_grad, p.data_ptr()) for p in live.parameters()]
    found = decoding(vae)
    latents = noise(BATCH, 4, 8, 8).requires_grad_()
    image_B3HW = found(latents)
    (slope,) = torch.autograd.grad(image_B3HW.square().sum(), latents)
    assert not seen and {p.dtype for p in found.vae.parameters()} == {torch.float32}
    assert [(p.dtype, p.requires_grad, p.data_ptr()) for p in live.parameters()] == before
    wide = copy.deepcopy(live).float()
    expected_B3HW = wide.decode(latents) / 2 + 0.5
    (expected,) = torch.autograd.grad(expected_B3HW.square().sum(), latents)
    assert_close(image_B3HW, expected_B3HW, atol=1e-5, rtol=1e-5)
    assert_close(slope, expected, atol=1e-5, rtol=1e-4)


SETTINGS = {"prompt": "a red fox", "strength": 0.3, "window_low": 0.1, "window_high": 1.0}


def test_it_is_steer(model, vae):
    """Euler's steps with the hook end where `steer` around the diffusers pipeline does."""
    latents = noise(BATCH, 4, 16, 32)
    settings = {"prompt_embeds": model.words, "guidance_scale": 1.0, "height": 32, "width": 64}
    settings |= {"num_inference_steps": 4, "output_type": "latent", "latents": latents}
    with torch.no_grad():
        plain = model.sample(latents, model.words)
        assert_close(model.pipe(**settings).images, plain, atol=1e-4, rtol=0)
        objective = TotalVariation() + Range()
        with steer(model.pipe, objective, strength=0.3):
            theirs = model.pipe(**settings).images
        hook = node._hook(Shortcut(strength=0.3), objective, decoding(vae))
        model.set_model_sampler_post_cfg_function(hook)
        mine = model.sample(latents, model.words)
    assert (mine - plain).abs().max() > 0.05
    assert_close(mine, theirs, atol=1e-3, rtol=0)


def test_patch(model, vae, clip_folder):
    """A clone is steered, in inference mode, where ComfyUI runs; 0 and the rest of the window
    change no bit; a run repeats, and an image is steered alone as in its batch."""
    latents, settings = noise(BATCH, 4, 16, 32), {**SETTINGS, "clip": str(clip_folder)}
    with torch.inference_mode():
        vae.first_stage_model = copy.deepcopy(vae.first_stage_model)  # as ComfyUI's loader makes it
        assert next(vae.first_stage_model.parameters()).is_inference()
        (patched,) = node.SteerByClip().patch(model, vae, **settings)
        assert not model.hooks and len(patched.hooks) == 1
        plain, steered = (m.sample(latents, model.words) for m in (model, patched))
        assert torch.equal(patched.sample(latents, model.words), steered)
        alone = patched.sample(latents[:1], model.words[:1])
        assert_close(alone, steered[:1], atol=1e-4, rtol=0)
        (off,) = node.SteerByClip().patch(model, vae, **{**settings, "strength": 0.0})
        assert torch.equal(off.sample(latents, model.words), plain)
        x0 = noise(BATCH, 4, 16, 32)
        assert patched.hooks[0](model.arguments(x0, 0.01)) is x0
    objective = Similarity(load_clip(str(clip_folder)), "a red fox", views=None)
    with torch.inference_mode():
        loss_B = [
            objective(vae.first_stage_model.decode(model.process_latent_out(x)) / 2 + 0.5)
            for x in (plain, steered)
        ]
    assert (loss_B[1] < loss_B[0]).all()


def test_a_move_is_as_long_as_it_says(model, vae):
    """strength · sin²(πn/2) · rms(x0), in the type of x0."""
    hook = node._hook(Shortcut(strength=0.3), TotalVariation(), decoding(vae))
    x0 = noise(BATCH, 4, 16, 32).half()
    moved = hook(model.arguments(x0, 1.0))
    assert moved.dtype == torch.float16
    size_B = [t.float().flatten(1).square().mean(1).sqrt() for t in (moved - x0, x0)]
    expected_B = 0.3 * math.sin(math.pi / 4) ** 2 * size_B[1]
    assert_close(size_B[0], expected_B, rtol=0.01, atol=0)


@pytest.mark.parametrize(("sampling", "sigma", "expected"), [
    (Variance(), 1.0, 0.5), (Variance(), 1e9, 1.0), (Flow(), 1.0, 1.0), (Flow(), 0.5, 0.5),
    (Flow(), 0.0, 0.0),
])  # fmt: skip
def test_noise_level(sampling, sigma, expected):
    assert node._noise(sampling, torch.full((2,), sigma)) == pytest.approx(expected, abs=1e-6)


def test_gradients_that_are_no_numbers(model, vae):
    """That image stays as it is, and the user hears of it."""

    class Broken(TotalVariation):
        def __call__(self, image_B3HW, generators=None):
            loss_B = super().__call__(image_B3HW, generators)
            return loss_B * torch.tensor([math.nan, 1.0])

    hook = node._hook(Shortcut(), Broken(), decoding(vae))
    x0 = noise(BATCH, 4, 16, 32)
    with pytest.warns(ClipguideWarning, match="gradient of image 0 is not a number"):
        moved = hook(model.arguments(x0, 1.0))
    assert torch.equal(moved[0], x0[0])
    assert not torch.equal(moved[1], x0[1])


def test_inputs_and_errors(model, vae, clip_folder):
    inputs = node.SteerByClip.INPUT_TYPES()["required"]
    assert list(inputs) == ["model", "vae", *SETTINGS, "clip"]
    settings = {**SETTINGS, "clip": str(clip_folder)}
    with pytest.raises(UsageError, match="The window lies in"):
        node.SteerByClip().patch(model, vae, **{**settings, "window_low": 1.0})
    vae.latent_dim = 3
    with pytest.raises(UsageError, match="is not one of images"):
        node.SteerByClip().patch(model, vae, **settings)


@pytest.fixture
def images():
    """Four images, in ComfyUI's layout."""
    return noise(4, 3, 40, 48).sigmoid().movedim(1, -1)


def brightness(settings):
    """A reward whose order is known: the mean of the pixels."""

    class Bright(Objective):
        def __call__(self, image_B3HW, generators=None):
            return -image_B3HW.flatten(1).mean(1)

    return lambda prompts: Bright()


@pytest.fixture
def bright(request):
    """Loaded by the node; with a gradient unless the test says otherwise."""
    gradient = getattr(request, "param", True)
    register_reward("bright", brightness, gradient=gradient, reads=False)
    yield pack.LoadReward().load("bright", "here", "")[0]
    REWARDS.unregister("bright")


def shades(*values):
    """Grey images."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 8, 8, 3).clone()


def test_scores_are_the_librarys(images, clip_folder):
    """The cosines of `Similarity.score_pictures`, one an image; by a reward the reward's own. An
    image has the same score alone, and a sum of parts is scored as a prompt is."""
    text, name = "a red fox | a cat:-0.5", str(clip_folder)
    with torch.inference_mode():
        scores, report = pack.ScoreImages().score(images, text, name)
        (alone,), _ = pack.ScoreImages().score(images[2:3], text, name)
    pictures = to_pil(images.movedim(-1, 1))
    expected = Similarity(load_clip(name), text).score_pictures(pictures)
    assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)
    assert alone == scores[2] and len(set(scores)) == 4
    order = sorted(range(4), key=scores.__getitem__, reverse=True)
    assert report == "\n".join(f"image {i}: {scores[i]:.4f}" for i in order)
    (reward,) = pack.LoadReward().load("clip", name, "")
    assert pack.ScoreImages().score(images, text, "not asked for", reward)[0] == scores


def test_rank(bright):
    """The best first, equal ones in the order of the batch, the pixels as they were."""
    images = shades(0.2, 0.8, 0.4, 0.8)
    for top, expected in {0: [1, 3, 2, 0], 1: [1], 3: [1, 3, 2], 9: [1, 3, 2, 0]}.items():
        found, report = pack.RankImages().rank(images, "", "unused", top, bright)
        assert torch.equal(found, images[expected])
        assert len(report.splitlines()) == 4
    with pytest.raises(UsageError, match="0 for all, not -1"):
        pack.RankImages().rank(images, "", "unused", -1, bright)


@pytest.mark.parametrize(("seeds", "expected"), [
    ("5, 6,7", 7), ("5 6\n 18446744073709551615,", 2**64 - 1), ("9", 9),
])  # fmt: skip
def test_best_seed(bright, seeds, expected):
    """One seed an image, or that of the whole batch."""
    images = shades(0.2, 0.4, 0.8)
    assert pack.BestSeed().best(images, "", "unused", seeds, bright) == (expected, 2)


@pytest.mark.parametrize(("seeds", "match"), [
    ("", "not ''"), ("1, x", "not 'x'"), ("1.5", "not '1.5'"), ("-1", "not '-1'"),
    ("18446744073709551616", "from 0 to 18446744073709551615"), ("1, 2", "3 images and 2 seeds"),
])  # fmt: skip
def test_seeds_that_are_none(bright, seeds, match):
    with pytest.raises(UsageError, match=match) as caught:
        pack.BestSeed().best(shades(0.2, 0.4, 0.8), "", "unused", seeds, bright)
    one_sentence(caught.value)


def one_sentence(error):
    words = str(error)
    assert words.endswith(".") and "\n" not in words and ". " not in words


@pytest.mark.parametrize(("broken", "match"), [
    (lambda images: images[:0], "has no image"),
    (lambda images: images[..., :0, :], "has no image"),
    (lambda images: images[0], "B x H x W x 3"),
    (lambda images: torch.cat([images, images[..., :1]], -1), "convert them to RGB"),
    (lambda images: images.where(images != images[2, 3, 4, 1], math.nan), "Image 2 has pixels"),
    (lambda images: images.where(images != images[1, 0, 0, 0], math.inf), "Image 1 has pixels"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["ScoreImages", "RankImages", "BestSeed"])
def test_images_that_are_none(images, clip_folder, name, broken, match):
    """One sentence, before a CLIP is loaded."""
    scored, more = getattr(pack, name), {"RankImages": {"top": 1}, "BestSeed": {"seeds": "1"}}
    with pytest.raises(UsageError, match=match) as caught:
        run = getattr(scored(), scored.FUNCTION)
        run(broken(images), text="a red fox", clip="no such folder", **more.get(name, {}))
    one_sentence(caught.value)


@pytest.mark.parametrize(("text", "match"), [
    ("", "The prompt is empty"), ("a fox |", "an empty part"), ("a fox:0", "weight 0"),
    ("a fox | a fox:-1", "cancel each other out"),
])  # fmt: skip
def test_prompts_that_are_none(images, model, vae, clip_folder, text, match):
    """The same sentence from each node that reads a prompt, by a CLIP and by a reward."""
    name, settings = str(clip_folder), {**SETTINGS, "prompt": text}
    (reward,) = pack.LoadReward().load("clip", name, "")
    calls = [
        lambda: pack.ScoreImages().score(images, text, name),
        lambda: pack.RankImages().rank(images, text, name, 1, reward),
        lambda: pack.BestSeed().best(images, text, name, "1", reward),
        lambda: pack.SteerByClip().patch(model, vae, **settings, clip=name),
        lambda: pack.SteerByReward().patch(model, vae, reward, **settings),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=match) as caught:
            call()
        one_sentence(caught.value)


def test_scores_that_are_no_numbers(images, bright, monkeypatch):
    monkeypatch.setattr(Reward, "score_pictures", lambda self, pictures: torch.tensor([math.nan]))
    with pytest.raises(UsageError, match="by bright=here are not all finite numbers") as caught:
        pack.RankImages().rank(images, "", "unused", 0, bright)
    one_sentence(caught.value)


def test_rewards_that_are_none(tmp_path):
    """What cannot be loaded is said by the node that loads."""
    assert pack.LoadReward.INPUT_TYPES()["required"]["name"][0] == sorted(REWARDS)
    for name, weights, match in (
        ("pickscor", "", "no reward 'pickscor'"), ("dino", "", "must be told"),
        ("clip", str(tmp_path), "cannot be loaded|no"),
    ):  # fmt: skip
        with pytest.raises(ClipguideError, match=match):
            pack.LoadReward().load(name, weights, "")


@pytest.mark.parametrize("bright", [False], indirect=True)
def test_a_reward_without_a_gradient_ranks_but_does_not_steer(model, vae, bright):
    images = shades(0.2, 0.8)
    assert torch.equal(pack.RankImages().rank(images, "", "unused", 0, bright)[0], images.flip(0))
    with pytest.raises(UsageError, match="no gradient to steer by.*load one of aesthetic, clip,"):
        pack.SteerByReward().patch(model, vae, bright, **SETTINGS)


def test_steer_by_reward(model, vae, bright):
    """In inference mode; what is drawn has more of the reward, by the formula of the reward."""
    latents = noise(BATCH, 4, 16, 32)
    with torch.inference_mode():
        (patched,) = pack.SteerByReward().patch(model, vae, bright, **SETTINGS)
        plain, steered = (m.sample(latents, model.words) for m in (model, patched))
        decode, scaled = vae.first_stage_model.decode, model.process_latent_out
        shown = [decode(scaled(x)) for x in (plain, steered)]
    assert not model.hooks
    assert (shown[1].flatten(1).mean(1) > shown[0].flatten(1).mean(1)).all()


def test_steer_by_the_reward_clip(model, vae, clip_folder):
    """The hook of the reward "clip" is that of the same objective, whole images and no views."""
    (reward,) = pack.LoadReward().load("clip", str(clip_folder), "")
    x0 = noise(BATCH, 4, 16, 32)
    with torch.inference_mode():
        (patched,) = pack.SteerByReward().patch(model, vae, reward, **SETTINGS)
        found = patched.hooks[0](model.arguments(x0, 1.0))
    objective = Similarity(load_clip(str(clip_folder)), SETTINGS["prompt"], views=None, kind="dot")
    hook = node._hook(Shortcut(strength=0.3), objective, decoding(vae))
    assert_close(found, hook(model.arguments(x0, 1.0)), atol=1e-5, rtol=0)
    assert not torch.equal(found, x0)


def test_a_workflow_cannot_ask_for_a_pickle(monkeypatch):
    """Only who starts ComfyUI can: a workflow may be somebody else's."""
    asked = []

    def reward(name, *, trust_pickle, **settings):
        asked.append(trust_pickle)
        return SimpleNamespace(load=lambda: None)

    monkeypatch.setattr(sys.modules[f"{pack.__name__}.scoring"], "Reward", reward)
    monkeypatch.delenv("CLIPGUIDE_TRUST_PICKLE", raising=False)
    assert "trust_pickle" not in pack.LoadReward.INPUT_TYPES()["required"]
    for value in (None, "0", "1"):
        if value is not None:
            monkeypatch.setenv("CLIPGUIDE_TRUST_PICKLE", value)
        pack.LoadReward().load("clip", "mini", "")
    assert asked == [False, False, True]
