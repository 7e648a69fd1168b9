"""Decoders: the linear map, tiny decoders, the choice, half precision, what the user set.

Shapes: B samples, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import copy
import re

import diffusers
import pytest
import torch
from tiny_pipelines import BATCH, draw, noise, tiny
from torch.testing import assert_close

from clipguide import TotalVariation, steer
from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import linear
from clipguide.guidance.decoders import Decoder
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Bright(Objective):
    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


def gradient(decoder, x0):
    x0 = x0.clone().requires_grad_()
    return torch.autograd.grad(Bright()(decoder(x0)).sum(), x0)[0]


def test_linear_map_of_a_linear_decoder():
    """Found again, to the rounding: colours are sums over the 3 x 3 latents around a place."""
    matrix_3Ckk, bias_3 = noise(3, 4, 3, 3), noise(3)

    def small(latents_NChw):
        edged = torch.nn.functional.pad(latents_NChw, (1,) * 4, mode="replicate")
        return torch.nn.functional.conv2d(edged, matrix_3Ckk, bias_3)

    def decode(latents_NChw):
        return small(latents_NChw).repeat_interleave(2, 2).repeat_interleave(2, 3)

    found = linear.fit(decode, (4, 40, 24))
    assert_close(found.matrix_3Ckk, matrix_3Ckk, atol=1e-5, rtol=1e-5)
    assert_close(found.bias_3, bias_3, atol=1e-5, rtol=1e-5)
    assert found.r2 > 1 - 1e-9 and found.scale == 2
    latents = noise(1, 4, 3, 5)
    expected = torch.nn.functional.interpolate(small(latents), (6, 10), mode="bilinear")
    assert_close(found(latents), expected, atol=1e-5, rtol=1e-5)


def test_smooth_latents():
    first, again = linear.smooth(4, (3, 16, 24)), linear.smooth(4, (3, 16, 24))
    assert torch.equal(first, again)
    assert_close(first.transpose(0, 1).flatten(1).std(1), torch.ones(3))
    step = (first[..., 1:] - first[..., :-1]).square().mean()
    assert step < 1.2  # 2 for white noise


def test_linear_map_of_the_embedded_autoencoder():
    """A real, smooth VAE: most of the colour is linear in the latent."""
    from clipguide import mini

    vae = diffusers.AutoencoderKL.from_pretrained(mini.path("generator") / "vae").eval()
    scaling = vae.config.scaling_factor

    def decode(latents_NChw):
        return vae.decode(latents_NChw / scaling).sample / 2 + 0.5

    assert linear.fit(decode, (vae.config.latent_channels, 16, 16)).r2 > 0.7


@pytest.mark.parametrize("name", ["SD 1.5", "FLUX.2", "Qwen-Image", "AnimateDiff"])
def test_linear_decoder(name):
    """Of the VAE's size, differentiable, the same for each sample alone, and fitted once."""
    pipe, settings = tiny(name)
    decoder, own = Decoder(pipe, kind="linear"), Decoder(pipe)
    shape = {"FLUX.2": (16, 16), "Qwen-Image": (64, 16), "AnimateDiff": (4, 3, 8, 16)}
    x0 = noise(BATCH, *shape.get(name, (4, 8, 16)))
    image = decoder(x0)
    fitted = decoder._map(decoder._unpacked(x0))
    assert image.shape == own(x0).shape and image.dtype == torch.float32
    assert_close(decoder(x0[1:]), image[len(image) // 2 :], atol=1e-6, rtol=0)
    assert gradient(decoder, x0).abs().amin(tuple(range(1, x0.ndim))).numel() == BATCH
    assert decoder._map(decoder._unpacked(x0)) is fitted and 0 < fitted.r2 <= 1
    assert_close(decoder.exact(x0), own(x0), atol=1e-5, rtol=0)
    again = Decoder(tiny(name)[0], kind="linear")
    assert torch.equal(again(x0), image)


def tiny_decoder(channels: int = 4):
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=channels,
    ).eval()


def test_tiny_decoder(tmp_path):
    """An object or a folder of one; it takes latents as the model has them, unscaled."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    model = tiny_decoder()
    image = Decoder(pipe, kind="tiny", tiny=model)(x0)
    assert_close(image, model.decode(x0).sample / 2 + 0.5, atol=1e-6, rtol=0)
    model.save_pretrained(tmp_path)
    assert torch.equal(Decoder(pipe, kind="tiny", tiny=tmp_path)(x0), image)
    assert torch.equal(Decoder(pipe, kind="tiny", tiny=str(tmp_path))(x0), image)
    with pytest.raises(ClipguideError, match="takes latents of 6 channels, and StableDiffusionPip"):
        Decoder(pipe, kind="tiny", tiny=tiny_decoder(6))(x0)


def test_auto_goes_by_budget_and_memory():
    """The VAE where its gradient fits both; else what is at hand, with the reason; for a run of any
    batch alike."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    assert Decoder(pipe).choose(x0) == "decoder: vae (whole)"
    assert torch.equal(Decoder(pipe)(x0), Decoder(pipe, kind="vae")(x0))
    poor = Decoder(pipe, memory=0)
    assert poor.choose(x0).startswith("decoder: linear, as the gradient through the vae needs more")
    assert torch.equal(poor(x0), Decoder(pipe, kind="linear")(x0)) and poor.kind == "linear"
    at_hand = Decoder(pipe, memory=0, tiny=tiny_decoder())
    assert at_hand.choose(x0).startswith("decoder: tiny, as the gradient")
    assert "pixels" in Decoder(tiny("DDPM")[0]).choose(noise(BATCH, 3, 8, 8))


def test_auto_at_real_sizes():
    """Sizes alone decide: Stable Diffusion's pipelines are steered by the linear map, unless they
    are given the time, and the memory that the VAE then takes."""
    from benchmarks.random_models import hollow

    pipe = hollow("SDXL")
    x0 = torch.empty(1, 4, 128, 128, device="meta")
    said = Decoder(pipe, memory=4).choose(x0)
    assert re.fullmatch(r"decoder: linear, as .* takes 2[.]\d x the time of plain sampling", said)
    rich = Decoder(pipe, memory=4, budget=8)
    assert rich.choose(x0).startswith("decoder: vae (one image at a time, layers recomputed, in bf")
    assert Decoder(pipe, memory=20, budget=8).choose(x0) == "decoder: vae (whole)"


def test_auto_of_the_embedded_generator():
    """Its VAE is so small that it is the VAE at any size that it draws."""
    from clipguide import mini

    pipe = tiny("mini")[0]
    pipe.vae = diffusers.AutoencoderKL.from_pretrained(mini.path("generator") / "vae").eval()
    for batch, side in ((1, 16), (8, 16), (1, 32)):
        said = Decoder(pipe, memory=4).choose(torch.empty(batch, 8, side, side, device="meta"))
        assert said == "decoder: vae (whole)"


def test_strength_0_decodes_nothing():
    pipe, settings = tiny("SD 1.5")
    seen = []

    def decode(latents):
        seen.append(latents)
        return latents[:, :3]

    with steer(pipe, TotalVariation(), decoder=decode, strength=0) as s:
        draw(pipe, settings)
    assert not seen and len(s.report.trace) == 3
    with steer(pipe, TotalVariation(), decoder=decode):
        draw(pipe, settings)
    assert seen


def test_the_last_step_is_seen_by_the_vae():
    """Those before it by what is chosen."""
    pipe, settings = tiny("SD 1.5")
    seen, grey = [], lambda latents: 0 * latents[:, :3] + 0.5
    with steer(pipe, TotalVariation(), decoder=grey, on_step=lambda x: seen.append(x.preview())):
        draw(pipe, settings)
    assert [float(image.std()) > 0.01 for image in seen] == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision(dtype):
    """A copy in float32, made once a context; the pipeline's VAE is untouched."""
    pipe, x0 = tiny("SDXL")[0], noise(BATCH, 4, 8, 16)
    pipe.vae.to(dtype)
    reference = copy.deepcopy(pipe.vae).float()
    decoder = Decoder(pipe)
    half = x0.half()
    image = decoder(half)
    copied = decoder._decodings["vae"][1].vae
    expected = reference.decode(half.float() / 0.13025).sample / 2 + 0.5
    assert_close(image, expected, atol=1e-5, rtol=1e-5)
    assert image.dtype == torch.float32
    assert decoder._decodings["vae"][1].vae is copied is not pipe.vae and pipe.vae.dtype == dtype


def test_the_users_slices_and_tiles_are_off():
    """With a gradient they cost more than the ladder's own."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    image, slope = Decoder(pipe)(x0), gradient(Decoder(pipe), x0)
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    decoder = Decoder(pipe)
    assert torch.equal(decoder(x0), image) and torch.equal(gradient(decoder, x0), slope)
    assert pipe.vae.use_tiling and pipe.vae.use_slicing


def test_images_that_tile():
    """Convolutions that pad in a circle do so in the copy."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    plain = Decoder(pipe)(x0)
    for part in pipe.vae.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.padding_mode = "circular"
    expected = pipe.vae.decode(x0 / 0.18215).sample / 2 + 0.5
    assert_close(Decoder(pipe)(x0), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_a_function():
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    decoder = Decoder(pipe, kind=lambda latents: latents[:, :3])
    assert_close(decoder(x0), x0[:, :3] / 0.18215)
    assert decoder.choose(x0) == "decoder: function"


def test_the_linear_map_is_kept_with_its_vae():
    """Over contexts; a VAE that was trained in between is fitted anew."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    latents, maps = Decoder(pipe, kind="linear"), []
    for _ in range(2):
        latents.open()
        maps.append(latents._map(x0))
        latents.close()
    assert maps[0] is maps[1]
    assert Decoder(pipe, kind="linear")._map(x0) is maps[0]
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 1
    after = Decoder(pipe, kind="linear")._map(x0)
    assert_close(after.bias_3, maps[0].bias_3 + 0.5)
    assert after is not maps[0]


def test_the_map_of_another_size_is_of_whole_weights():
    """What is decoded in bfloat16, to look at, leaves nothing rounded for the next map."""
    small, large = noise(1, 4, 4, 8, seed=1), noise(1, 4, 8, 8, seed=2)
    pipe, fresh = tiny("SD 1.5")[0], tiny("SD 1.5")[0]
    for one in (pipe, fresh):
        one.vae.to(torch.bfloat16)
    decoder = Decoder(pipe, kind="linear")
    decoder(small)
    decoder.exact(small)
    assert torch.equal(decoder(large), Decoder(fresh, kind="linear")(large))


def test_no_vae():
    """Not: the latents as pixels."""
    pipe = tiny("SD 1.5")[0]
    pipe.vae = None
    with pytest.raises(ClipguideError, match="this StableDiffusionPipeline has no VAE: load one"):
        Decoder(pipe)


def test_like():
    """A class that the table does not know, by one whose latents it shares."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    expected = Decoder(pipe)(x0)
    other = type("OtherPipeline", (diffusers.DiffusionPipeline,), {})()
    other.vae, other.scheduler = pipe.vae, pipe.scheduler
    with pytest.raises(ClipguideError, match="like='StableDiffusionPipeline'"):
        Decoder(other)
    assert torch.equal(Decoder(other, like="StableDiffusionPipeline")(x0), expected)
    with pytest.raises(UsageError, match="Did you mean StableDiffusionPipeline"):
        Decoder(other, like="StableDifusionPipeline")


def test_weights_get_no_gradients():
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    decoder = Decoder(pipe)
    decoder.open()
    gradient(decoder, x0)
    assert all(p.grad is None and p.requires_grad for p in pipe.vae.parameters())
    decoder.close()


def test_finite_differences():
    """In float64, through unpacking, batch norm and VAE."""
    pipe = tiny("FLUX.2")[0]
    pipe.vae.double()
    decoder = Decoder(pipe)
    x0, way = noise(1, 16, 16).double(), noise(1, 16, 16, seed=8).double()
    decode = lambda x: decoder._decode(x, "vae").double().sum()  # noqa: E731
    x = x0.clone().requires_grad_()
    (slope,) = torch.autograd.grad(decode(x), x)
    along = (decode(x0 + 1e-2 * way) - decode(x0 - 1e-2 * way)) / 2e-2
    assert_close((slope * way).sum(), along, atol=1e-2, rtol=1e-2)


def test_bad_input(tmp_path):
    pipe = tiny("SD 1.5")[0]
    with pytest.raises(UsageError, match="There is no decoder 'lineal'. Did you mean linear?"):
        Decoder(pipe, kind="lineal")
    with pytest.raises(UsageError, match="needs `tiny`"):
        Decoder(pipe, kind="tiny")
    with pytest.raises(UsageError, match="has no config.json"):
        Decoder(pipe, kind="tiny", tiny=tmp_path)
    with pytest.raises(UsageError, match="The hub has no tiny decoder for the VAE of this Stable"):
        Decoder(pipe, tiny="hub")
    with pytest.raises(UsageError, match="The budget is a number from 1"):
        Decoder(pipe, budget=0.5)
    with pytest.raises(UsageError, match="The memory is a number from 0"):
        Decoder(pipe, memory=float("nan"))
    with pytest.raises(UsageError, match="DDPMPipeline draws pixels"):
        Decoder(tiny("DDPM")[0], kind="linear")
