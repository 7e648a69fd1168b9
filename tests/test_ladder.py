"""The ladder of plans: what each gives, what each needs, which is taken; what a step costs.

Shapes: N images, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import warnings

import diffusers
import pytest
import torch
from tiny_pipelines import BATCH, draw, kl, noise, tiny
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_models import LATENTS, hollow
from clipguide import TotalVariation, steer
from clipguide.errors import ClipguideError, ClipguideWarning
from clipguide.guidance import cost, ladder, tinies
from clipguide.guidance.clean import Made, clean
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.ladder import PLANS, Decoding, Plan
from clipguide.guidance.latents import family
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = ("SD 1.5", "Qwen-Image", "Sana")  # KL, a VAE of videos, one with neither blocks' switches


def of(name):
    """The VAE of a tiny pipeline, how it decodes, and two latents."""
    pipe = tiny(name)[0]
    return pipe.vae, family(pipe).decode, noise(BATCH, 4, 16, 24)


def taken(decode, latents):
    """image_N3HW and the gradient of a sum of its squares."""
    leaf = latents.clone().requires_grad_()
    image_N3HW = decode(leaf)
    return image_N3HW.detach(), torch.autograd.grad(image_N3HW.square().sum(), leaf)[0]


def cosine(a, b):
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_rung(name):
    """The exact ones give what the live VAE gives, by PyTorch alone; bfloat16 and tiles nearly."""
    vae, decode, latents = of(name)
    expected = taken(lambda latents: decode(vae.requires_grad_(False), latents), latents)
    for plan in PLANS:
        found = taken(Decoding(clean(vae, "cpu"), decode, plan), latents)
        for ours, theirs in zip(found, expected, strict=True):
            if plan.exact:
                assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
            assert ours.dtype == torch.float32 and ours.shape == theirs.shape
            if plan.tiles == 1:
                assert cosine(ours, theirs) > 0.995, plan
        assert cosine(found[0], expected[0]) > 0.95, plan


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_recomputed(name):
    """Each resnet and attention by itself, and every convolution that has neighbours in one."""
    vae, _, _ = of(name)
    made = clean(vae, "cpu")
    found = list(ladder.layers(made))
    inside = {part for layer in found for part in layer.modules()}
    assert len(found) >= 3 and not any(isinstance(part, nn.ModuleList) for part in found)
    assert sum(layer in set(other.modules()) for layer in found for other in found) == len(found)
    alone = [m for m in made.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)) and m not in inside]
    assert len(alone) <= 4  # at the two ends


def test_tiles_of_what_only_convolves():
    """The whole's, to the rounding, edges of tiles included: a tiny decoder reaches less far than
    the rim that counts for nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 3, 3, padding=1),
    )
    latents = noise(1, 4, 64, 96)
    whole = taken(model, latents)
    for tiles in (2, 4):  # their rims are 2 and 1... latents
        found = taken(lambda x, tiles=tiles: ladder.tiled(model, x, tiles), latents)
        for ours, theirs in zip(found, whole, strict=True):
            assert_close(ours, theirs, atol=1e-5, rtol=1e-5) if tiles == 2 else None
            assert cosine(ours, theirs) > 0.999


def test_tiles_of_the_embedded_autoencoder():
    """A trained VAE, whose norms see a tile alone: the image and the gradient for the most part."""
    from clipguide import mini

    vae = diffusers.AutoencoderKL.from_pretrained(mini.path("generator") / "vae").eval()
    decode = lambda vae, latents: vae.decode(latents, return_dict=False)[0] / 2 + 0.5  # noqa: E731
    latents = noise(1, vae.config.latent_channels, 32, 32)
    whole = taken(Decoding(clean(vae, "cpu"), decode, Plan()), latents)
    found = taken(Decoding(clean(vae, "cpu"), decode, Plan(single=True, tiles=2)), latents)
    assert cosine(found[0], whole[0]) > 0.98
    assert cosine(found[1], whole[1]) > 0.8  # of white noise, which is the worst


def test_need_is_what_is_kept():
    """Against PyTorch's own count of tensors kept for the gradient, by the live VAE: ours keeps no
    inputs of convolutions, and at the peak two gradients stand beside the rest. No attention: what
    that keeps goes by the device's kernels, and is counted as plain matrices."""
    _, decode, latents = of("SD 1.5")
    vae = kl(mid_block_add_attention=False)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    vae.requires_grad_(False)
    weights = {p.untyped_storage()._cdata for p in vae.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decode(vae, latents.clone().requires_grad_())
    theirs = sum(size for key, size in kept.items() if key not in weights)
    shape = tuple(latents.shape)
    needs = [ladder.need(Made.of(vae), decode, shape, plan) for plan in PLANS]
    assert 0.5 * theirs < needs[0] < theirs
    assert needs[:6] == sorted(needs[:6], reverse=True)  # each rung needs less
    assert ladder.need(Made.of(vae), decode, (4 * BATCH, *shape[1:]), PLANS[0]) == pytest.approx(
        4 * needs[0], rel=0.01
    )


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0)),
        nn.Conv2d(4, 8, 3, stride=(1, 3), dilation=2, groups=4),
        nn.Conv3d(4, 6, (3, 1, 2), stride=(2, 1, 3), padding=(1, 0, 1)),
    ],
    ids=str,
)
def test_a_convolution_has_pytorchs_gradient(convolution):
    """Though it keeps no input: whatever stride, dilation and groups."""
    x = noise(2, 4, *(11, 13, 12)[: len(convolution.kernel_size)])
    kept = []
    ours, theirs = (taken(part, x) for part in (clean(convolution, "cpu"), convolution))
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        clean(convolution, "cpu")(x.clone().requires_grad_())
    assert kept == [convolution.weight.shape]


def test_the_first_that_fits_is_taken():
    needs = dict(zip(PLANS, (70, 60, 50, 40, 30, 20, 10), strict=True))
    for limit, plan in ((100, PLANS[0]), (69, PLANS[1]), (45, PLANS[3]), (1, PLANS[-1])):
        assert ladder.planned(needs.get, limit, number=2) == plan
    assert ladder.planned(needs.get, 69, number=1) == PLANS[2]
    assert ladder.planned(needs.get, 100, number=2, after=PLANS[3]) == PLANS[4]
    assert ladder.planned(needs.get, 100, number=2, after=PLANS[-1]) is None


def test_what_does_not_fit_is_said_once():
    pipe, settings = tiny("SD 1.5")
    with pytest.warns(
        ClipguideWarning, match=r"is taken one image at a time, .* than 0\.0 GiB"
    ) as w:
        with steer(pipe, TotalVariation(), decoder="vae", memory=1e-4) as s:
            draw(pipe, settings)
            draw(pipe, settings, seed=5)
    assert len([x for x in w if x.category is ClipguideWarning]) == 1
    assert s.report.decoder.startswith(
        "decoder: vae (one image at a time, layers recomputed, in bf"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        with steer(pipe, TotalVariation(), decoder="vae") as s:
            draw(pipe, settings)
    assert s.report.decoder == "decoder: vae (whole)"


class Hungry(Objective):
    """Runs out of memory as often as it is told."""

    def __init__(self, times):
        self.times = times

    def __call__(self, image_B3HW, generators=None):
        if self.times and torch.is_grad_enabled():
            self.times -= 1
            raise torch.OutOfMemoryError("not enough memory")
        return TotalVariation()(image_B3HW, generators)


def test_where_memory_runs_out_the_next_plan_is_tried():
    """The exact ones, then fewer views, then the others, then a sentence that says what to do."""
    pipe, settings = tiny("SD 1.5")
    with steer(pipe, TotalVariation(), strength=0.3, decoder="vae"):
        expected_B3HW = draw(pipe, settings)
    with pytest.warns(ClipguideWarning, match="Memory ran out: the gradient is taken in"):
        with steer(pipe, Hungry(2), strength=0.3, decoder="vae") as s:
            found_B3HW = draw(pipe, settings)
    assert_close(found_B3HW, expected_B3HW, atol=1e-5, rtol=1e-4)
    assert len([said for said in s.report.warnings if "Memory ran out" in said]) == 1
    with pytest.warns(ClipguideWarning):
        with steer(pipe, Hungry(2), strength=0.3, decoder="vae") as s:
            draw(pipe, settings)
            draw(pipe, settings)
        assert s.report.decoder == (
            "decoder: vae (one image at a time, layers recomputed, as memory ran out)"
        )
    with pytest.warns(ClipguideWarning), pytest.raises(ClipguideError, match="single view.*tiny"):
        with steer(pipe, Hungry(99), strength=0.3, decoder="vae"):
            draw(pipe, settings)


def test_a_tiny_decoder_climbs_too():
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    latents = noise(BATCH, 4, 16, 24)
    expected = taken(lambda x: tinies.decode(model.requires_grad_(False), x), latents)
    for plan in PLANS[:3]:
        found = taken(Decoding(clean(model, "cpu"), tinies.decode, plan), latents)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    pipe = tiny("SD 1.5")[0]
    assert "(one image at" in Decoder(pipe, kind="tiny", tiny=model, memory=0).choose(latents)
    assert "forward" not in model.decoder.layers[2].__dict__  # the user's own is left alone


def counted(geometry):
    """Operations of one evaluation without guidance, by PyTorch's counter."""
    pipe, shape = hollow(geometry), LATENTS[geometry]
    empty = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    text = {"SD 1.5": 768, "SDXL": 2048, "Qwen-Image": 3584}.get(geometry, 4096)
    words = {"encoder_hidden_states": empty(1, 77, text)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if geometry == "SD 1.5":
            pipe.unet(empty(*shape), 1, **words)
        elif geometry == "SDXL":
            known = {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}
            pipe.unet(empty(*shape), 1, **words, added_cond_kwargs=known)
        elif geometry == "SD3.5-medium":
            pooled = {"pooled_projections": empty(1, 2048), "timestep": empty(1)}
            pipe.transformer(empty(*shape), **words, **pooled)
        elif geometry == "FLUX":
            pooled = {"pooled_projections": empty(1, 768), "timestep": empty(1)}
            places = {"img_ids": empty(4096, 3), "txt_ids": empty(77, 3), "guidance": empty(1)}
            pipe.transformer(empty(*shape), **words, **pooled, **places)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "geometry",
    [
        "SD 1.5",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("SDXL", "SD3.5-medium", "FLUX")),
    ],
)
def test_cost_of_a_step(geometry):
    pipe = hollow(geometry)
    guided = 1 if geometry == "FLUX" else 2
    estimate = cost.of_step(pipe, LATENTS[geometry])
    assert estimate == pytest.approx(guided * counted(geometry), rel=0.35)
    assert cost.of_step(pipe, (4, *LATENTS[geometry][1:])) == 4 * estimate


def test_float32_costs_twice_beside_half_precision_on_an_accelerator():
    """As much arithmetic as a step's, in float32: 1 + 2 there, and 1 + 1 anywhere else."""
    pipe, _ = tiny("SD 1.5")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert cost.worth(pipe, 5.0, 5.0, half=False, on=cuda) == 2
    pipe.unet.half()
    assert cost.worth(pipe, 5.0, 5.0, half=False, on=cuda) == 3
    assert cost.worth(pipe, 5.0, 5.0, half=True, on=cuda) == 2
    assert cost.worth(pipe, 5.0, 5.0, half=False, on=cpu) == 2
    assert cost.worth(pipe, 5.0, 0.0, half=True, on=cpu) == float("inf")
