"""Decoding under every way that a pipeline is kept small or quick: the gradient is the plain one's,
and the pipeline is as it was.

Shapes: B samples, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from tiny_pipelines import BATCH, draw, noise, tiny
from torch.testing import assert_close

from clipguide import TotalVariation, steer
from clipguide.errors import ClipguideError
from clipguide.guidance.clean import clean
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")


def seen(decoder, x0):
    """image_B3HW, and the gradient of its square at x0."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x0.clone().requires_grad_()
        image_B3HW = decoder(leaf)
        return image_B3HW.detach(), torch.autograd.grad(image_B3HW.square().sum(), leaf)[0]


def state(pipe):
    """All of a pipeline that steering must leave alone."""
    parts = {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }
    found = []
    for name, part in parts.items():
        found += [
            (name, path, sorted(set(m.__dict__) - {"_is_hf_initialized"}))
            for path, m in part.named_modules()
        ]
        found += [
            (name, path, p.device, p.dtype, p.requires_grad, p.grad is None)
            for path, p in part.named_parameters()
        ]
    return found, sorted(pipe.__dict__), sorted(pipe.scheduler.__dict__)


def model_offload(pipe, folder):
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe, folder):
    """As enable_sequential_cpu_offload does it with a VAE; it is not run: accelerate's own hooks
    fail where the device of execution is the CPU."""
    from accelerate import cpu_offload

    cpu_offload(pipe.vae, CPU)


def disk_offload(pipe, folder):
    from accelerate import disk_offload

    disk_offload(pipe.vae, str(folder), execution_device=CPU)


def group_offload_leaf(pipe, folder):
    pipe.vae.enable_group_offload(CPU, CPU, offload_type="leaf_level")


def group_offload_block(pipe, folder):
    pipe.vae.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


def group_offload_disk(pipe, folder):
    pipe.vae.enable_group_offload(
        CPU, CPU, offload_type="leaf_level", offload_to_disk_path=str(folder)
    )


def compiled_in_place(pipe, folder):
    pipe.vae.compile(backend="eager")


def compiled_method(pipe, folder):
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")


def compiled_part(pipe, folder):
    pipe.vae.decoder = torch.compile(pipe.vae.decoder, backend="eager")


def plain(pipe, folder):
    pass


WAYS = (
    plain,
    model_offload,
    sequential_offload,
    disk_offload,
    group_offload_leaf,
    group_offload_block,
    group_offload_disk,
    compiled_in_place,
    compiled_method,
    compiled_part,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_gradient_is_the_plain_ones(way, tmp_path):
    """For each of what decodes; before the pipeline has run and after, when hooks have put the
    weights away."""
    pipe, settings = tiny("SD 1.5")
    x0 = noise(BATCH, 4, 8, 16)
    expected = {kind: seen(Decoder(pipe, kind=kind), x0) for kind in ("vae", "linear")}
    pipe, settings = tiny("SD 1.5")
    way(pipe, tmp_path)
    before = state(pipe)
    for _ in range(2):
        for kind, (image_B3HW, slope) in expected.items():
            found_B3HW, found = seen(Decoder(pipe, kind=kind), x0)
            assert_close(found_B3HW, image_B3HW, atol=1e-6, rtol=1e-6)
            assert_close(found, slope, atol=1e-6, rtol=1e-5)
        assert state(pipe) == before
        draw(pipe, settings, output_type="latent" if way is sequential_offload else "pt")
        before = state(pipe)


@pytest.mark.parametrize(
    "way", [w for w in WAYS if w is not sequential_offload], ids=lambda way: way.__name__
)
def test_steered(way, tmp_path):
    """The same image as plainly steered; 0 changes no bit; the pipeline is as it was."""
    pipe, settings = tiny("SD 1.5")
    with steer(pipe, TotalVariation(), strength=0.3):
        expected_B3HW = draw(pipe, settings)
    pipe, settings = tiny("SD 1.5")
    way(pipe, tmp_path)
    unsteered_B3HW = draw(pipe, settings)
    before = state(pipe)
    with steer(pipe, TotalVariation(), strength=0.3):
        assert_close(draw(pipe, settings), expected_B3HW, atol=1e-5, rtol=1e-4)
    assert state(pipe) == before
    with steer(pipe, TotalVariation(), strength=0):
        assert torch.equal(draw(pipe, settings), unsteered_B3HW)
    assert state(pipe) == before


def test_layerwise_casting():
    """Weights are stored in 8 bits, norms are not: the gradient is that of these weights in
    float32."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)
    pipe.vae.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert pipe.vae.decoder.conv_in.weight.dtype == torch.float8_e4m3fn
    other = tiny("SD 1.5")[0]
    with torch.no_grad():
        for ours, theirs in zip(other.vae.parameters(), pipe.vae.parameters(), strict=True):
            ours.copy_(theirs.float())
    before = state(pipe)
    for found, expected in zip(seen(Decoder(pipe), x0), seen(Decoder(other), x0), strict=True):
        assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert state(pipe) == before


def test_inference_mode():
    """Around the pipeline's making, its run, or all of it."""
    pipe, settings = tiny("SD 1.5")
    x0 = noise(BATCH, 4, 8, 16)
    expected = seen(Decoder(pipe), x0)
    with steer(pipe, TotalVariation(), strength=0.3):
        expected_B3HW = draw(pipe, settings)
    with torch.inference_mode():
        made, settings = tiny("SD 1.5")
        for kind in ("vae", "linear"):
            assert seen(Decoder(made, kind=kind), x0)[1].isfinite().all()
        with steer(made, TotalVariation(), strength=0.3):
            assert_close(draw(made, settings), expected_B3HW, atol=1e-5, rtol=1e-4)
    assert pipe.vae.decoder.conv_in.weight.is_inference() is False
    assert made.vae.decoder.conv_in.weight.is_inference()
    for found, known in zip(seen(Decoder(made), x0), expected, strict=True):
        assert_close(found, known, atol=1e-6, rtol=1e-5)


def test_autocast_does_not_reach_the_decoder():
    """A VAE in float32 is so because half precision overflows in it; nor the way back."""
    pipe, x0 = tiny("SD 1.5")[0], noise(BATCH, 4, 8, 16)

    def found():
        generators = [torch.Generator() for _ in range(BATCH)]
        given = {"objective": TotalVariation(), "generators": generators, "streams": generators}
        run = Run(scheduler=pipe.scheduler, decode=Decoder(pipe), warn=print, **given)
        gradient = run.gradient(x0)
        return gradient.image_N3HW, gradient.value

    expected = found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, theirs in zip(found(), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_ordinary_weights_are_shared_and_safe():
    """No copy of what is in float32 where it runs; and nothing done to the copy reaches it."""
    vae = tiny("SD 1.5")[0].vae
    before = copy.deepcopy(vae.state_dict())
    made = clean(vae, CPU)
    live = dict(vae.named_parameters())
    assert all(p.data_ptr() == live[name].data_ptr() for name, p in made.named_parameters())
    assert made.encoder is None and not any(p.requires_grad for p in made.parameters())
    made.to(torch.bfloat16)
    vae.to(torch.float64).to(torch.float32)
    assert all(p.requires_grad for p in vae.parameters())
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name])
    halved = tiny("SD 1.5")[0].vae.half()
    assert next(clean(halved, CPU).parameters()).dtype == torch.float32


def test_what_cannot_be_read_is_refused():
    vae = tiny("SD 1.5")[0].vae
    vae.decoder.conv_in.to("meta")
    with pytest.raises(ClipguideError, match="weight decoder.conv_in.weight is on no device"):
        clean(vae, CPU)
    vae = tiny("SD 1.5")[0].vae
    vae.decoder.conv_out.weight = torch.nn.Parameter(torch.zeros(9, dtype=torch.uint8), False)
    with pytest.raises(ClipguideError, match="is torch.uint8 of shape"):
        clean(vae, CPU)
    vae.decoder.conv_out = torch.nn.Identity()
    with pytest.raises(ClipguideError, match="lacks the weight decoder.conv_out.weight"):
        clean(vae, CPU)
    other = torch.nn.Linear(2, 2).half()  # of no library: its structure is copied
    made = clean(other, CPU)
    assert torch.equal(made.weight, other.weight.float()) and not made.weight.requires_grad


def test_ten_images_in_one_context_do_not_grow_memory():
    """One copy a context, none after it; and nothing else stays: tensors alive after the second
    image are those after the tenth."""
    pipe, settings = tiny("SD 1.5")
    pipe.vae.half()

    def alive():
        gc.collect()
        found = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        return len(found), sum(x.nbytes for x in found)

    counts = []
    with steer(pipe, TotalVariation(), strength=0.3, decoder="vae") as s:
        for seed in range(10):
            draw(pipe, settings, seed=seed, steps=2, output_type="latent")
            counts.append(alive())
        copies = weakref.ref(s._decoder._decodings["vae"][1].vae)
        assert copies() is not None
    assert set(counts[2:]) == {counts[1]}
    gc.collect()
    assert copies() is None
