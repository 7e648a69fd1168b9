"""Decoders: the linear map, tiny decoders, the choice, half precision, slices, tiles, hooks.

Shapes: B samples, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from tiny_pipelines import BATCH, noise, tiny
from torch.nn import functional
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import linear
from clipguide.guidance.decoders import Decoder
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Bright(Objective):
    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


class Grained(Objective):
    """Far from noise that no linear map of the latents can draw."""

    def __call__(self, image_B3HW, generators=None):
        seed = int(torch.randint(9, (), generator=generators[0]))
        generator = torch.Generator().manual_seed(seed)
        target = torch.rand(image_B3HW.shape[1:], generator=generator)
        small_3hw = functional.avg_pool2d(target, 4)
        fine = target - functional.interpolate(small_3hw[None], scale_factor=4)[0]
        return -(image_B3HW * fine).flatten(1).mean(1)


def generators():
    return [torch.Generator().manual_seed(i) for i in range(BATCH)]


def gradient(decoder, x0):
    x0 = x0.clone().requires_grad_()
    return torch.autograd.grad(Bright()(decoder(x0)).sum(), x0)[0]


def test_linear_map_of_a_linear_decoder():
    """Found again, to the rounding, from 8 random latents."""
    matrix_C3, bias_3 = noise(4, 3), noise(3)

    def decode(latents_NChw):
        image_N3hw = torch.einsum("nchw,cd->ndhw", latents_NChw, matrix_C3) + bias_3.view(
            1, 3, 1, 1
        )
        return image_N3hw.repeat_interleave(2, 2).repeat_interleave(2, 3)

    found = linear.fit(decode, (4, 40, 24))
    assert_close(found.matrix_C3, matrix_C3, atol=1e-5, rtol=1e-5)
    assert_close(found.bias_3, bias_3, atol=1e-5, rtol=1e-5)
    assert found.r2 > 1 - 1e-9 and found.scale == 2
    latents = noise(1, 4, 3, 5)
    small = torch.einsum("nchw,cd->ndhw", latents, matrix_C3) + bias_3.view(1, 3, 1, 1)
    expected = functional.interpolate(small, (6, 10), mode="bilinear")
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

    assert linear.fit(decode, (vae.config.latent_channels, 16, 16)).r2 > 0.6


@pytest.mark.parametrize("name", ["SD 1.5", "FLUX.2", "Qwen-Image", "AnimateDiff"])
def test_linear_decoder(name):
    """Of the VAE's size, differentiable, the same for each sample alone, and fitted once."""
    pipe, settings = tiny(name)
    decoder, own = Decoder(pipe, kind="linear"), Decoder(pipe)
    shape = {"FLUX.2": (16, 16), "Qwen-Image": (64, 16), "AnimateDiff": (4, 3, 8, 16)}
    x0 = noise(BATCH, *shape.get(name, (4, 8, 16)))
    image = decoder(x0)
    fitted = decoder._map
    assert image.shape == own(x0).shape and image.dtype == torch.float32
    assert_close(decoder(x0[1:]), image[len(image) // 2 :], atol=1e-6, rtol=0)
    assert gradient(decoder, x0).abs().amin(tuple(range(1, x0.ndim))).numel() == BATCH
    assert decoder._map is fitted and 0 < fitted.r2 <= 1
    assert torch.equal(decoder.exact(x0), own(x0))
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


def test_choice(monkeypatch):
    """Of a VAE that draws a colour and a grain of each latent, a linear map knows the colour: all
    that brightness asks for, and nothing of what the grain does. Generators are as they were."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    matrix, grain = noise(4, 3), noise(4, 3, 4, 4, seed=9)
    grain = grain - grain.mean((2, 3), keepdim=True)

    def decode(latents, return_dict=False):
        colour = torch.einsum("nchw,cd->ndhw", latents, matrix)
        colour = colour.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return (colour + functional.conv_transpose2d(latents, grain, stride=4),)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    decoder, own = Decoder(pipe, kind="auto"), Decoder(pipe)
    assert torch.equal(decoder(x0), own(x0))
    views = generators()
    before = [g.get_state() for g in views]
    said = decoder.choose(x0, Bright(), views, 0.1)
    assert decoder.kind == "linear" and said.startswith("decoder: linear; of the gain")
    assert not torch.equal(decoder(x0), own(x0))
    said = decoder.choose(x0, Grained(), views, 0.1)
    assert decoder.kind == "vae" and "linear" in said
    assert torch.equal(decoder(x0), own(x0))
    assert all(torch.equal(g.get_state(), state) for g, state in zip(views, before, strict=True))
    pixels = Decoder(tiny("DDPM")[0], kind="auto")
    assert "pixels" in pixels.choose(noise(BATCH, 3, 8, 8), Bright(), generators(), 0.1)
    assert pixels.kind == "vae"


def test_choice_is_by_what_the_vae_sees():
    """The share in the report, computed here by hand."""
    pipe, x0 = tiny("SD3")[0], noise(BATCH, 4, 8, 16)
    own, cheap = Decoder(pipe), Decoder(pipe, kind="linear")
    rms_B = lambda x: x.square().mean((1, 2, 3), keepdim=True).sqrt()  # noqa: E731

    def gain(decoder):
        g = gradient(decoder, x0)
        with torch.no_grad():
            moved = x0 - 0.2 * rms_B(x0) * g / rms_B(g)
            return float((Bright()(own(x0)) - Bright()(own(moved))).sum())

    said = Decoder(pipe, kind="auto").choose(x0, Bright(), generators(), 0.2)
    assert f"linear {gain(cheap) / gain(own):.0%}" in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """A copy in float32, made once; the pipeline's VAE is untouched."""
    pipe, x0 = tiny("SDXL")[0], noise(BATCH, 4, 8, 16)
    pipe.vae.to(dtype)
    decoder = Decoder(pipe)
    image = decoder(x0.to(dtype))
    copied = decoder._vae
    reference = copy.deepcopy(pipe.vae).float()
    expected = reference.decode(x0.to(dtype).float() / 0.13025).sample / 2 + 0.5
    assert_close(image, expected, atol=1e-5, rtol=1e-5)
    assert image.dtype == torch.float32 == gradient(decoder, x0).dtype
    assert decoder._vae is copied is not pipe.vae and pipe.vae.dtype == dtype
    decoder.open()
    decoder.close()
    decoder(x0)
    assert decoder._vae is copied


def test_slices_and_tiles():
    """As the user set them, gradients included."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    decoder = Decoder(pipe)
    image, slope = decoder(x0), gradient(decoder, x0)
    pipe.vae.enable_slicing()
    assert_close(decoder(x0), image, atol=1e-6, rtol=0)
    assert_close(gradient(decoder, x0), slope, atol=1e-6, rtol=1e-4)
    pipe.vae.disable_slicing()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    pipe.vae.enable_tiling()
    assert torch.equal(decoder(x0), pipe.vae.decode(x0 / 0.18215).sample / 2 + 0.5)
    assert decoder(x0).shape == image.shape and not torch.equal(decoder(x0), image)
    assert gradient(decoder, x0).isfinite().all()


def test_offloaded():
    """Under accelerate's hooks, even with its weights put away, and the hooks are not woken."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    expected = Decoder(pipe)(x0)
    cpu_offload(pipe.vae, execution_device=torch.device("cpu"))
    assert next(pipe.vae.parameters()).device.type == "meta"
    decoder = Decoder(pipe)
    assert_close(decoder(x0), expected, atol=1e-6, rtol=0)
    assert gradient(decoder, x0).isfinite().all()
    assert next(pipe.vae.parameters()).device.type == "meta"
    remove_hook_from_module(pipe.vae, recurse=True)


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
    with pytest.raises(UsageError, match="DDPMPipeline draws pixels"):
        Decoder(tiny("DDPM")[0], kind="linear")
