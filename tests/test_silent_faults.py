"""What was once wrong without a word, each on tiny pipelines.

Shapes: B samples, 3 channels of H x W pixels.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    StableDiffusionPAGPipeline,
)
from tiny_pipelines import draw, kl, tiny
from torch import nn
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import BestOf, Drafts, Embedding, Noise, Shortcut, borrowed, run, steer
from clipguide.guidance.calls import Calls
from clipguide.guidance.digest import digest
from clipguide.guidance.precision import derivative
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Bright(Objective):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __call__(self, image_B3HW, generators=None):
        self.seen.append(image_B3HW.detach())
        return -image_B3HW.flatten(1).mean(1)


def test_the_flags_of_best_of_are_those_of_its_images(monkeypatch):
    """The safety checker sees each candidate."""
    pipe, settings = tiny("SD 1.5")
    flags = iter([[True, False], [False, True], [True, True], [False, False]])
    told = []

    def check(self, image, device, dtype):
        told.append(next(flags))
        return image, told[-1]

    monkeypatch.setattr(type(pipe), "run_safety_checker", check)
    with steer(pipe, Bright(), method=BestOf(number=4)) as s:
        seeds = [torch.Generator().manual_seed(k) for k in (1, 2)]
        out = s(**settings, num_inference_steps=3, output_type="np", generator=seeds)
    best_B = torch.stack(s.report.candidates).argmax(0).tolist()
    assert out.nsfw_content_detected == [told[k][i] for i, k in enumerate(best_B)]
    assert out.nsfw_content_detected != told[0]


def test_another_vae_within_a_context_is_seen():
    pipe, settings = tiny("SD 1.5")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = kl()
    bright = Bright()
    with steer(pipe, bright, method=Shortcut(strength=0.2)) as s:
        draw(s, settings)
        before, pipe.vae = bright.seen[-1], other
        found, looked = draw(s, settings), bright.seen[-1]
    with steer(pipe, bright, method=Shortcut(strength=0.2)) as s:
        assert torch.equal(draw(s, settings), found)
    assert torch.equal(bright.seen[-1], looked) and not torch.equal(before, looked)


def test_each_sample_has_a_scale_of_its_own():
    """The NaN of one sample left the next one a gradient of 0; so did float32 in front of float16,
    as embeddings are."""
    of_B = torch.ones(3, 1, requires_grad=True)
    factor_B = torch.tensor([[float("nan")], [1e-8], [1e4]])

    def found(**options):
        return derivative((of_B.half().float() * factor_B).sum(), of_B, **options)

    assert found()[1] == 0
    grad = found(half=True)
    assert grad[0].isnan()
    assert_close(grad[1:], factor_B[1:], rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_denoiser_in_float16_has_its_loss_scaled(dtype, monkeypatch):
    """Whatever the dtype of what moves is: the shift of an embedding is in float32."""
    pipe, settings = tiny("SD 1.5")
    pipe.to(dtype)
    told = []

    def record(loss, of, *, half):
        told.append((of.dtype, half))
        return derivative(loss, of, half=half)

    monkeypatch.setattr(run, "derivative", record)
    half = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    with steer(pipe, Bright(), method=Embedding(rate=0.3, window=(0, 1))) as s:
        draw(s, half)
    assert set(told) == {(torch.float32, dtype == torch.float16)}


def test_noise_that_changes_nothing_is_that_of_the_pipeline():
    """Sana Sprint multiplies latents that are given by sigma_data."""
    pipe, settings = tiny("Sana Sprint")
    plain = draw(pipe, settings)
    with steer(pipe, Bright(), method=Noise(iterations=1, rate=0.0, white=False, prior=0.0)) as s:
        assert_close(draw(s, settings), plain, atol=1e-4, rtol=0)
        calls = Calls(s._session)
        noise = calls.initial_noise(**settings, generator=torch.Generator().manual_seed(0))
    assert 0.8 < noise.square().mean().sqrt() < 1.2


@pytest.mark.parametrize(
    ("name", "more"),
    [("CogView4", {"guidance_scale": 3.0}), ("Wan", {"guidance_scale": 3.0}),
     ("Qwen-Image", {"true_cfg_scale": 3.0})],
)  # fmt: skip
@pytest.mark.parametrize("method", [Embedding(rate=0.3, window=(0, 1)), Drafts(number=1, rate=0.2)])
def test_one_embedding_of_two_calls_is_not_moved(name, more, method):
    """The hook would move that of the prompt and that of the negative prompt."""
    pipe, settings = tiny(name)
    one = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    with pytest.raises(ClipguideError, match="one after the other"):
        with steer(pipe, Bright(), method=method) as s:
            draw(s, {**one, **more})


def test_an_embedding_of_three_parts_is_not_moved():
    pipe, settings = tiny("SD 1.5")
    parts = {k: v for k, v in pipe.components.items() if k != "requires_safety_checker"}
    pag = StableDiffusionPAGPipeline(
        **parts, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    with pytest.raises(ClipguideError, match="perturbed attention"):
        with steer(pag, Bright(), method=Embedding(rate=0.3, window=(0, 1))) as s:
            draw(s, {**settings, "pag_scale": 3.0})


def test_a_tape_needs_a_generator(tmp_path):
    pipe, settings = tiny("SD 1.5")
    with steer(pipe, Bright(), tape=tmp_path / "a") as s:
        with pytest.raises(UsageError, match="give `generator`"):
            s(**settings, num_inference_steps=2, output_type="pt")


@pytest.mark.parametrize("what", ["scheduler", "adapters"])
def test_a_tape_knows_what_it_is_of(what, tmp_path, monkeypatch):
    """The two schedulers have the same configuration. The adapters are those that are active."""
    pipe, settings = tiny("SD 1.5")
    more = {"num_inference_steps": 4, "output_type": "latent"}

    class Stop(Exception):
        pass

    def stop(step):
        if step.index == 1:
            raise Stop

    def run(kind, adapters, **settings_of):
        monkeypatch.setattr(borrowed, "adapters", lambda pipe: adapters)
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        with steer(pipe, Bright(), tape=tmp_path / "a", **settings_of) as s:
            return s(**settings, **more, generator=torch.Generator().manual_seed(0))

    with pytest.raises(Stop):
        run(KDPM2DiscreteScheduler, ["one"], on_step=stop)
    with pytest.raises(ClipguideError, match="another run's steps"):
        if what == "scheduler":
            run(KDPM2AncestralDiscreteScheduler, ["one"])
        else:
            run(KDPM2DiscreteScheduler, ["other"])
    run(KDPM2DiscreteScheduler, ["one"])


def test_sketches_are_kept_for_the_same_settings_of_the_models():
    """FreeU changes no weight."""
    pipe, _ = tiny("SD 1.5")
    with steer(pipe, Bright(), method=Shortcut()) as s:
        calls = Calls(s._session)
        before = calls.identity()
        assert calls.identity() == before is not None
        pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        assert calls.identity() != before


LEVEL = 0.5


def test_what_an_objective_reads_is_in_its_digest(monkeypatch):
    """A plain attribute of a module, and a global variable of a function."""

    class Target(nn.Module):
        def __init__(self, level):
            super().__init__()
            self.level, self.options = level, {"scale": [1, 2]}

    def objective(image_B3HW):
        return (image_B3HW - LEVEL).square().flatten(1).mean(1)

    assert digest(Target(0.0)) == digest(Target(0.0)) != digest(Target(1.0))
    changed = Target(0.0)
    changed.options["scale"][1] = 3
    assert digest(changed) != digest(Target(0.0))
    before = digest(objective)
    assert digest(objective) == before
    monkeypatch.setitem(globals(), "LEVEL", 0.7)
    assert digest(objective) != before
