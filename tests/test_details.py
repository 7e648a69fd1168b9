"""The details of a drawing that the embedded generator remembers, and the network that shows them
to the U-Net.

Shapes: B images, K channels of a map, C channels of a code.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_mini_pipeline import draw, pipe, remembering, seeds  # noqa: F401
from tiny_pipelines import noise
from torch.testing import assert_close

from clipguide import mini
from clipguide.mini.details import LEVELS, Details, packed, unpacked
from clipguide.mini.memory import MapMemory, split
from clipguide.mini.pipeline import MiniPipeline
from clipguide.rewards.sds import recorded
from training import details


def codes(*shape: int) -> torch.Tensor:
    """Random codes: numbers of LEVELS levels in [-1, 1]."""
    whole = torch.randint(0, LEVELS, shape, generator=torch.Generator().manual_seed(0))
    return whole * 2 / (LEVELS - 1) - 1


def network(unet, channels: int = 2) -> Details:
    """Details for a U-Net, with heads that are not zeros, as after training."""
    config = unet.config
    widths, skips, halvings = config.block_out_channels, [config.block_out_channels[0]], [0]
    for k, width in enumerate(widths):
        skips += [width] * config.layers_per_block
        halvings += [k] * config.layers_per_block
        if k < len(widths) - 1:
            skips, halvings = [*skips, width], [*halvings, k + 1]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Details(channels, 6, 8, skips, halvings, widths[-1])
        for head in net.heads:
            torch.nn.init.normal_(head.weight)
            torch.nn.init.normal_(head.bias)
    return net.eval().requires_grad_(False)


@pytest.fixture
def detailed(remembering) -> MiniPipeline:  # noqa: F811
    """A pipeline whose memory has details."""
    old = remembering.memory
    settings = {k: v for k, v in old.config.items() if not k.startswith("_")}
    memory = MapMemory(**{**settings, "detail_channels": 2})
    memory.load_state_dict({**old.state_dict(), "details": packed(codes(3, 2, 8, 8))})
    remembering.register_modules(memory=memory.eval(), details=network(remembering.unet))
    return remembering


def test_codes_are_packed_without_loss():
    given = codes(5, 8, 8, 8)
    kept = packed(given)
    assert kept.dtype == torch.uint8 and kept.shape == (5, 128)
    assert_close(unpacked(kept, 8), given)
    assert len(given.unique()) == LEVELS


def test_what_is_recalled_has_its_details(detailed):
    maps = detailed.memory.recall([2, 0], [None, "green"])
    map_BKhw, code = split(maps, 6)
    assert_close(code, codes(3, 2, 8, 8)[[2, 0]])
    assert map_BKhw.shape == (2, 6, 4, 4)
    plain, none = split(map_BKhw, 6)
    assert none.shape == (2, 0, 8, 8) and torch.equal(plain, map_BKhw)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (10, 14)])
def test_the_network_fits_the_unet(detailed, size):
    """What it adds has the shapes of the skip connections, at each size of the latents."""
    shapes, unet = [], detailed.unet
    handles = [
        part.register_forward_hook(lambda _, __, out: shapes.extend(x.shape for x in out[1]))
        for part in unet.down_blocks
    ]
    handles.append(unet.conv_in.register_forward_hook(lambda _, __, out: shapes.append(out.shape)))
    draw(detailed, "a boat", seeds(1), height=2 * size[0], width=2 * size[1])
    for handle in handles:
        handle.remove()
    size = tuple(shapes[0][-2:])
    more = detailed.details(codes(2, 2, 8, 8), noise(2, 6, 4, 4), torch.tensor(500), size)
    found = [x.shape[1:] for x in more["down_block_additional_residuals"]]
    assert found == [shape[1:] for shape in shapes[: len(found)]]


def test_nothing_is_added_without_details(detailed):
    """Not to the image of a code of zeros, and not by a network that has learned nothing."""
    code, maps = codes(2, 2, 8, 8), noise(2, 6, 4, 4)
    code[0] = 0
    more = detailed.details(code, maps, torch.tensor([500, 500]), (16, 16))
    added = more["down_block_additional_residuals"]
    assert all(not x[0].any() for x in added) and any(x[1].any() for x in added)
    assert not more["mid_block_additional_residual"].any()
    new = Details(2, 6, 8)
    more = new(code, maps, torch.tensor(5), (16, 16))
    assert not any(x.any() for x in more["down_block_additional_residuals"])


def test_the_timestep_matters(detailed):
    code, maps = codes(2, 2, 8, 8), noise(2, 6, 4, 4)

    def added(t) -> torch.Tensor:
        return detailed.details(code, maps, t, (16, 16))["down_block_additional_residuals"][0]

    both = added(torch.tensor([100, 900]))
    assert_close(both[:1], added(torch.tensor(100))[:1])
    assert_close(both[1:], added(900.0)[1:])
    assert not torch.allclose(added(100)[1:], both[1:])


def test_details_change_the_images_that_have_some(detailed):
    """A whale is remembered, and a boat is not; each is drawn as it is alone."""
    both = draw(detailed, ["a whale", "a boat"], seeds(1, 2))
    assert_close(draw(detailed, "a whale", seeds(1))[0], both[0], atol=1e-5, rtol=1e-5)
    assert_close(draw(detailed, "a boat", seeds(2))[0], both[1], atol=1e-5, rtol=1e-5)
    scene = draw(detailed, "a fox and a whale", seeds(3))
    detailed.register_modules(details=None)
    plain = draw(detailed, ["a whale", "a boat"], seeds(1, 2))
    assert_close(plain[1], both[1], atol=1e-5, rtol=1e-5)
    assert (plain[0] - both[0]).abs().max() > 1e-3
    assert (draw(detailed, "a fox and a whale", seeds(3)) - scene).abs().max() > 1e-3


def test_guidance_is_away_from_no_details(detailed):
    """At scale 2, the output is twice that with details, less the one without map and details."""
    code, maps, x = codes(1, 2, 8, 8), noise(1, 6, 4, 4), noise(1, 8, 16, 16)
    text, label, t = detailed.encode_prompt(["a fox", ""]), torch.tensor([1]), torch.tensor(500)
    with torch.no_grad():
        both = detailed._denoise(torch.cat([x, x]), t, maps, code, text, label, 2.0)
        told, untold = (
            detailed._denoise(x, t, m, c, tuple(a[k : k + 1] for a in text), label * k_, 1.0)
            for k, m, c, k_ in ((0, maps, code, 1), (1, 0 * maps, 0 * code, 0))
        )
    assert_close(both, 2 * told - untold, atol=1e-4, rtol=1e-4)


def test_details_are_saved(detailed, tmp_path):
    detailed.save_pretrained(tmp_path)
    again = MiniPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert_close(draw(again, "a whale", seeds(1)), draw(detailed, "a whale", seeds(1)))


def test_distillation_takes_what_is_added_at_its_timestep(detailed):
    """Not what was added at the first: against the pipeline's own call."""
    guided = recorded(detailed, ["a whale"], seeds(1), (32, 32))
    told, inner = [], detailed._denoise
    detailed._denoise = lambda x, t, *more, **named: told.append(more) or inner(
        x, t, *more, **named
    )
    draw(detailed, "a whale", seeds(1), height=32, width=32)
    side = 32 // detailed.vae_scale_factor
    x = noise(1, 8, side, side)
    detailed.scheduler.set_timesteps(10)
    outputs = []
    with torch.no_grad():
        for t in detailed.scheduler.timesteps[[0, 5]]:
            outputs.append(guided(x, t))
            assert_close(outputs[-1], inner(torch.cat([x, x]), t, *told[0]))
        kept = detailed.details.forward
        detailed.details.forward = lambda c, m, t, size: kept(c, m, 999, size)
        assert not torch.allclose(inner(torch.cat([x, x]), t, *told[0]), outputs[-1])


def test_shapes_say_nothing_of_the_hue():
    """Colours that are as light and as strong have the same shape."""
    red, blue = np.zeros((2, 1, 64, 64, 3), np.uint8)
    red[..., 0], red[..., 2] = 200, 40
    blue[..., 2], blue[..., 0] = 200, 40
    light, strong = (details.shapes(red) - details.shapes(blue).to(torch.int16))[0]
    assert not strong.any()
    found = details.shapes(np.full((1, 128, 128, 3), 255, np.uint8))
    assert found.shape == (1, 2, 64, 64) and found.dtype == torch.uint8
    assert (found[:, 0] == 255).all() and not found[:, 1].any()


def test_the_gradient_passes_the_rounding():
    coder = details.Coder()
    shape = torch.randint(0, 256, (2, 2, 64, 64), dtype=torch.uint8)
    code = coder.code(shape)
    assert_close(unpacked(packed(code.detach()), details.CHANNELS), code.detach())
    code.square().sum().backward()
    assert coder.encoder[0].weight.grad.abs().sum() > 0
    numbers = torch.tensor([0.5, -1.0, 3.0, -2.0])
    assert_close(details.excess(numbers), torch.tensor((4.0 + 1.0) / 4))


def test_what_ships_was_learned():
    """The memory's codes use every level, and the network adds something for each."""
    folder = mini.path("generator")
    memory = MapMemory.from_pretrained(folder / "memory")
    net = Details.from_pretrained(folder / "details")
    rows = range(0, memory.config.size, 50)
    maps, code = split(memory.recall(rows, [None] * len(rows)), memory.config.channels)
    shares = torch.stack([(code - level).abs().lt(1e-3).float().mean() for level in code.unique()])
    assert len(shares) == LEVELS and shares.min() > 0.02
    with torch.no_grad():
        more = net(code, maps, torch.tensor(900), (16, 16))["down_block_additional_residuals"]
    assert all(x.isfinite().all() for x in more)
    assert (more[0].flatten(1).std(1) > 0).all()
