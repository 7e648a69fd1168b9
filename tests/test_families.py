"""Every family: the decoder against the pipeline's own image, and the pipeline steered.

Shapes: B samples, N decoded images, 3 channels of H x W pixels.
"""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch
from test_methods import Brightness
from tiny_pipelines import BATCH, HEIGHT, TINY, WIDTH, draw, qwen_edit, tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import guides, steer
from clipguide.guidance import latents as families
from clipguide.guidance.decoders import Decoder
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BLENDED = ("SD inpainting", "SDXL inpainting")  # with the image, after the scheduler's step
SIZED = ("FLUX", "FLUX.2", "Qwen-Image")


class Red(Objective):
    """How far an image is from red."""

    def __call__(self, image_B3HW, generators=None):
        red = image_B3HW.new_tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        return (image_B3HW - red).square().flatten(1).mean(1)


def last_latents(pipe, settings, name) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scheduler's last step makes, and the image that the pipeline makes of that."""
    seen, step = [], pipe.scheduler.step

    def recorded(*args, **kwargs):
        out = step(*args, **kwargs)
        if isinstance(out, tuple):
            seen.append(out[1] if name in ("LCM", "Sana Sprint") else out[0])  # their x0
        else:
            seen.append(out.prev_sample)
        return out

    recorded.__signature__ = inspect.signature(step)
    pipe.scheduler.step = recorded
    image_N3HW = draw(pipe, settings)
    del pipe.scheduler.step
    if name in BLENDED:
        generator = [torch.Generator().manual_seed(3 + i) for i in range(BATCH)]
        quick = {"num_inference_steps": 3, "generator": generator, "output_type": "latent"}
        return pipe(**settings, **quick).images, image_N3HW
    return seen[-1], image_N3HW


@pytest.mark.parametrize("name", TINY)
def test_decoder_is_the_pipelines_own(name):
    pipe, settings = tiny(name)
    decoder = Decoder(pipe)
    decoder.open()
    latents, image_N3HW = last_latents(pipe, settings, name)
    with torch.no_grad():
        ours_N3HW = decoder(latents)
    decoder.close()
    assert ours_N3HW.dtype == torch.float32
    assert ours_N3HW.shape == (BATCH * (3 if name == "AnimateDiff" else 1), 3, HEIGHT, WIDTH)
    assert_close(ours_N3HW.clamp(0, 1), image_N3HW, atol=1e-5, rtol=0)
    assert ours_N3HW.std() > 0.01


@pytest.mark.parametrize("name", TINY)
def test_steered(name):
    """Strength 0 changes no bit, 1e-9 next to nothing, a run repeats, and the objective falls for
    every sample."""
    pipe, settings = tiny(name)
    plain_N3HW = draw(pipe, settings)
    with steer(pipe, Red(), strength=0):
        assert torch.equal(draw(pipe, settings), plain_N3HW)
    with steer(pipe, Red(), strength=1e-9, window=(0, 1)):
        assert_close(draw(pipe, settings), plain_N3HW, atol=1e-4, rtol=0)
    with steer(pipe, Red(), strength=0.3):
        steered_N3HW = draw(pipe, settings)
        assert torch.equal(draw(pipe, settings), steered_N3HW)
    before_B, after_B = (Red()(x).view(BATCH, -1).mean(1) for x in (plain_N3HW, steered_N3HW))
    assert (after_B < before_B).all()
    assert torch.equal(draw(pipe, settings), plain_N3HW)


@pytest.mark.parametrize("name", SIZED)
def test_size_is_heard_and_forgotten(name):
    """Latents handed in too; nothing stays wrapped, after an exception either."""
    pipe, settings = tiny(name)
    plain = draw(pipe, settings)
    before = dict(pipe.__dict__)
    latents, _ = last_latents(pipe, settings, name)
    handed = latents
    if name == "FLUX.2":  # takes them before it packs them
        handed = latents.mT.unflatten(2, (HEIGHT // 4, WIDTH // 4))
    decoder = Decoder(pipe)
    decoder.open()
    draw(pipe, settings, latents=handed)
    tall = {**settings, "height": WIDTH, "width": HEIGHT}
    wide_N3HW = decoder(latents)
    draw(pipe, tall)
    assert decoder(latents).shape == (BATCH, 3, WIDTH, HEIGHT) != wide_N3HW.shape
    decoder.close()
    assert pipe.__dict__ == before
    with pytest.raises(RuntimeError, match="stop"), steer(pipe, Red()):
        assert "prepare_latents" in pipe.__dict__
        raise RuntimeError("stop")
    assert pipe.__dict__ == before
    assert torch.equal(draw(pipe, settings), plain)
    with pytest.raises(ClipguideError, match="did not say the height and width of its 128 patches"):
        Decoder(pipe)(latents)


def test_only_packed_latents_are_watched_for():
    pipe, _ = tiny("SD3")
    decoder = Decoder(pipe)
    decoder.open()
    assert "prepare_latents" not in pipe.__dict__
    decoder.close()


def test_every_name_in_the_table_is_a_pipeline():
    ours = {"MiniPipeline"}
    for name in set(families.FAMILIES) - ours:
        assert hasattr(diffusers, name), name
    assert {pipeline for pipeline, _ in guides.GUIDES} <= set(families.FAMILIES)


def test_every_family_is_tested():
    names = ("SD 1.5", "SDXL", "SD3", "Sana Sprint", "DDPM", "AnimateDiff", *SIZED)
    names += ("Wan", "Kandinsky 5", "Stable Cascade")
    found = {families.family(tiny(name)[0]) for name in names}
    assert found == set(families.FAMILIES.values())


def test_stable_cascades_other_stages_are_refused():
    """Each in a sentence that names the one that is steered."""
    pipe, _ = tiny("Stable Cascade")
    prior = diffusers.StableCascadePriorPipeline(
        tokenizer=None, text_encoder=None, prior=pipe.decoder, scheduler=pipe.scheduler
    )
    with pytest.raises(ClipguideError, match="its latents are features.*DecoderPipeline"):
        steer(prior, Red())
    both = diffusers.StableCascadeCombinedPipeline(
        **pipe.components,
        **{f"prior_{key}": None for key in ("text_encoder", "tokenizer", "image_encoder")},
        prior_prior=pipe.decoder,
        prior_scheduler=pipe.scheduler,
        prior_feature_extractor=None,
    )
    with pytest.raises(ClipguideError, match="calls two pipelines.*decoder_pipe"):
        steer(both, Red())


@pytest.mark.parametrize("kind", ["", "Plus"])
def test_qwen_image_edit(kind):
    """The decoder is the pipeline's own, beside the latents of the image that it starts from; the
    objective falls, and strength 0 changes no bit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, settings = qwen_edit(kind)
    pipe.set_progress_bar_config(disable=True)
    plain_B3HW = draw(pipe, settings, steps=2)
    seen = []
    with steer(pipe, Red(), strength=0.3, decoder="vae", on_step=lambda step: seen.append(step)):
        steered_B3HW = draw(pipe, settings, steps=2)
        last_B3HW = seen[-1].preview()
    assert steered_B3HW.shape == (1, 3, 128, 256) == last_B3HW.shape
    assert (Red()(steered_B3HW) < Red()(plain_B3HW)).all()
    with steer(pipe, Red(), strength=0.0):
        assert torch.equal(draw(pipe, settings, steps=2), plain_B3HW)
    decoder = Decoder(pipe)
    decoder.open()
    latents, image_B3HW = last_latents(pipe, settings, "Qwen-Image-Edit")
    with torch.no_grad():
        assert_close(decoder(latents).clamp(0, 1), image_B3HW, atol=1e-5, rtol=0)
    decoder.close()


def test_videos_are_refused():
    """In the sentence that says what is possible."""
    pipe, settings = tiny("Wan")
    with pytest.raises(ClipguideError, match="draw one frame"), steer(pipe, Red()):
        draw(pipe, {**settings, "num_frames": 5})


def test_a_family_of_ones_own():
    class Mine(diffusers.StableDiffusionPipeline):
        pass

    entry = families.Family(families.PLAIN.to_vae)
    try:
        families.register("Mine", like=entry)
        pipe, _ = tiny("SD 1.5")
        pipe.__class__ = Mine
        assert families.family(pipe) is entry
    finally:
        families.FAMILIES.unregister("Mine")


class OlderFlux(diffusers.FluxPipeline):
    """Its scale is a patch's side in pixels, as that of the community's Flux pipelines."""

    def prepare_latents(self, batch_size, channels, height, width, *rest):
        return super().prepare_latents(batch_size, channels, 2 * height, 2 * width, *rest)

    @staticmethod
    def _unpack_latents(latents, height, width, scale):
        return diffusers.FluxPipeline._unpack_latents(latents, height, width, scale // 2)


def test_a_pipeline_whose_scale_is_a_patch():
    pipe, settings = tiny("FLUX")
    with steer(pipe, Brightness()):
        expected = draw(pipe, settings)
    older = OlderFlux(**pipe.components)
    older.vae_scale_factor *= 2
    older.set_progress_bar_config(disable=True)
    with steer(older, Brightness(), like="FluxPipeline"):
        assert torch.equal(draw(older, settings), expected)


def test_unknown_family():
    pipe, _ = tiny("DDPM")
    other = diffusers.ConsistencyModelPipeline(pipe.unet, pipe.scheduler)
    with pytest.raises(ClipguideError, match="ConsistencyModelPipeline cannot be steered: how its"):
        families.family(other)


def test_guides():
    """Tags that open_clip has; one for each family but pixels, which nobody conditions by text."""
    import open_clip

    known = {"/".join(pair) for pair in open_clip.list_pretrained()}
    assert {guide.name for guide in guides.GUIDES.values()} <= known
    pipe, _ = tiny("SDXL")
    with pytest.raises(UsageError, match="Which CLIP should guide this StableDiffusionXLPipeline"):
        guides.default_clip(pipe)  # its text is 16 wide
    pipe.unet.register_to_config(cross_attention_dim=2048)
    assert guides.default_clip(pipe) == guides.CONVNEXT.name
    for name in ("SD3", "FLUX", "FLUX.2", "Qwen-Image", "Z-Image", "Stable Cascade", "Sana"):
        assert guides.default_clip(tiny(name)[0]) == guides.CONVNEXT.name
    with pytest.raises(UsageError, match="Which CLIP should guide this DDPMPipeline"):
        guides.default_clip(tiny("DDPM")[0])
