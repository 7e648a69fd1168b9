"""VQGANs of taming-transformers: converted, they compute what a plain reading of their weights does
(and, where that package is installed, what the package does).

Shapes: B images, 3 channels, H x W pixels, C channels of h x w, D channels of a code, K codes.
"""

from __future__ import annotations

import sys
import types

import diffusers
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.testing import assert_close

from clipguide.canvases import VQGAN, load_taming
from clipguide.canvases.taming import convert
from clipguide.errors import ClipguideError, UsageError

WIDTHS, BLOCKS, ATTENTIVE, CHANNELS, CODES = (32, 32, 64), 2, (1, 2), 24, 40
SIDE, FACTOR = 32, 4


def random_state(embed: int = 16, seed: int = 0, widths=WIDTHS) -> dict[str, torch.Tensor]:
    """Random weights under their original names, with codes as far apart as latents are."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, inner, outer, size):
        fan = inner * size * size
        state[f"{name}.weight"] = torch.randn(outer, inner, size, size, generator=generator)
        state[f"{name}.weight"] *= fan**-0.5
        state[f"{name}.bias"] = torch.randn(outer, generator=generator) * 0.1

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.3

    def block(name, inner, outer):
        norm(f"{name}.norm1", inner)
        conv(f"{name}.conv1", inner, outer, 3)
        norm(f"{name}.norm2", outer)
        conv(f"{name}.conv2", outer, outer, 3)
        if inner != outer:
            conv(f"{name}.nin_shortcut", inner, outer, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(name, width):
        block(f"{name}.block_1", width, width)
        attention(f"{name}.attn_1", width)
        block(f"{name}.block_2", width, width)

    def level(name, inner, outer, blocks, attentive):
        for i in range(blocks):
            block(f"{name}.block.{i}", outer if i else inner, outer)
            if attentive:
                attention(f"{name}.attn.{i}", outer)

    top = len(widths) - 1
    conv("encoder.conv_in", 3, widths[0], 3)
    conv("decoder.conv_in", CHANNELS, widths[top], 3)
    for n, width in enumerate(widths):
        below, above = widths[max(n - 1, 0)], widths[min(n + 1, top)]
        level(f"encoder.down.{n}", below, width, BLOCKS, n in ATTENTIVE)
        level(f"decoder.up.{n}", above, width, BLOCKS + 1, n in ATTENTIVE)
        if n < top:
            conv(f"encoder.down.{n}.downsample.conv", width, width, 3)
        if n > 0:
            conv(f"decoder.up.{n}.upsample.conv", width, width, 3)
    for side, width, outer in (("encoder", widths[top], CHANNELS), ("decoder", widths[0], 3)):
        middle(f"{side}.mid", widths[top])
        norm(f"{side}.norm_out", width)
        conv(f"{side}.conv_out", width, outer, 3)
    conv("quant_conv", CHANNELS, embed, 1)
    conv("post_quant_conv", embed, CHANNELS, 1)
    state["quantize.embedding.weight"] = torch.randn(CODES, embed, generator=generator)
    return state


def gumbel_state() -> dict[str, torch.Tensor]:
    state = random_state(embed=CHANNELS, seed=1)
    state["quantize.embed.weight"] = state.pop("quantize.embedding.weight")
    state["quantize.proj.weight"] = torch.randn(CODES, CHANNELS, 1, 1)
    state["quantize.proj.bias"] = torch.randn(CODES)
    return state


class Reference:
    """Read off the weights' names alone."""

    def __init__(self, state):
        self.state = state

    def has(self, name):
        return f"{name}.weight" in self.state

    def conv(self, name, x, **options):
        weight = self.state[f"{name}.weight"]
        options = {"padding": weight.shape[-1] // 2, **options}
        return F.conv2d(x, weight, self.state[f"{name}.bias"], **options)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def norm_swish_conv(self, norm, conv, x):
        x = self.norm(norm, x)
        return self.conv(conv, x * x.sigmoid())

    def block(self, name, x):
        inner = self.norm_swish_conv(f"{name}.norm1", f"{name}.conv1", x)
        inner = self.norm_swish_conv(f"{name}.norm2", f"{name}.conv2", inner)
        return inner + (self.conv(f"{name}.nin_shortcut", x) if inner.shape != x.shape else x)

    def attention(self, name, x_BChw):
        normed = self.norm(f"{name}.norm", x_BChw)
        q, k, v = (self.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        share_Bij = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(-1)
        mixed_BChw = torch.einsum("bij,bcj->bci", share_Bij, v).view_as(x_BChw)
        return x_BChw + self.conv(f"{name}.proj_out", mixed_BChw)

    def level(self, name, x):
        i = 0
        while self.has(f"{name}.block.{i}.conv1"):
            x = self.block(f"{name}.block.{i}", x)
            if self.has(f"{name}.attn.{i}.q"):
                x = self.attention(f"{name}.attn.{i}", x)
            i += 1
        return x

    def middle(self, name, x):
        x = self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", x))
        return self.block(f"{name}.block_2", x)

    def encode(self, image):
        x = self.conv("encoder.conv_in", image)
        for n in range(len(WIDTHS)):
            x = self.level(f"encoder.down.{n}", x)
            if self.has(down := f"encoder.down.{n}.downsample.conv"):
                x = self.conv(down, F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        x = self.middle("encoder.mid", x)
        x = self.norm_swish_conv("encoder.norm_out", "encoder.conv_out", x)
        return self.conv("quant_conv", x)

    def codes(self, latents_BDhw):
        codes_KD = self.state["quantize.embedding.weight"]
        distance_BKhw = (latents_BDhw[:, None] - codes_KD[None, :, :, None, None]).square().sum(2)
        return codes_KD[distance_BKhw.argmin(1)].permute(0, 3, 1, 2)

    def decode(self, code_BDhw):
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", code_BDhw))
        x = self.middle("decoder.mid", x)
        for n in reversed(range(len(WIDTHS))):
            x = self.level(f"decoder.up.{n}", x)
            if self.has(up := f"decoder.up.{n}.upsample.conv"):
                x = self.conv(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.norm_swish_conv("decoder.norm_out", "decoder.conv_out", x)


def random(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def model(state):
    return convert(state)


def test_encode_quantise_decode(state, model):
    reference, image_B3HW = Reference(state), random(2, 3, SIDE, SIDE + 8).clamp(-1, 1)
    latents_BDhw = model.encode(image_B3HW).latents
    assert_close(latents_BDhw, reference.encode(image_B3HW), atol=2e-5, rtol=1e-5)
    code_BDhw = reference.codes(latents_BDhw)
    assert len(code_BDhw.flatten(2).unique(dim=2).flatten()) > 3 * code_BDhw.shape[1]  # some codes
    assert_close(model.quantize(latents_BDhw)[0], code_BDhw, atol=1e-6, rtol=0)
    decoded_B3HW = reference.decode(code_BDhw)
    assert decoded_B3HW.shape == image_B3HW.shape
    assert_close(model(image_B3HW).sample, decoded_B3HW, atol=2e-5, rtol=1e-5)


def test_gumbel(tmp_path):
    """Its codebook and decoder are converted; it does not begin with an image, nor after a
    round trip."""
    state = gumbel_state()
    model, code_BDhw = convert(state), random(2, CHANNELS, 6, 8)
    assert torch.equal(model.quantize.embedding.weight, state["quantize.embed.weight"])
    decoded_B3HW = model.decode(code_BDhw, force_not_quantize=True).sample
    assert_close(decoded_B3HW, Reference(state).decode(code_BDhw), atol=2e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    for found in (model, diffusers.VQModel.from_pretrained(tmp_path)):
        canvas = VQGAN(found, 64, 64, [torch.Generator().manual_seed(0)])
        assert canvas.decode().shape == (1, 3, 64, 64)
        with pytest.raises(UsageError, match="A Gumbel VQGAN cannot begin with an image"):
            canvas.encode(torch.rand(1, 3, 64, 64))


def test_the_original(state, model, monkeypatch):
    lightning = types.ModuleType("pytorch_lightning")
    lightning.LightningModule = torch.nn.Module
    lightning.Trainer = lightning.seed_everything = None
    if "pytorch_lightning" not in sys.modules:
        monkeypatch.setitem(sys.modules, "pytorch_lightning", lightning)
    layers = pytest.importorskip("taming.modules.diffusionmodules.model")
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    options = {
        "ch": WIDTHS[0],
        "ch_mult": [width // WIDTHS[0] for width in WIDTHS],
        "num_res_blocks": BLOCKS,
        "attn_resolutions": [SIDE >> level for level in ATTENTIVE],
        "resolution": SIDE,
        "z_channels": CHANNELS,
        "in_channels": 3,
        "out_ch": 3,
        "double_z": False,
    }
    original = torch.nn.Module()
    original.encoder, original.decoder = layers.Encoder(**options), layers.Decoder(**options)
    original.quantize = quantize.VectorQuantizer2(CODES, 16, beta=0.25)
    original.quant_conv = torch.nn.Conv2d(CHANNELS, 16, 1)
    original.post_quant_conv = torch.nn.Conv2d(16, CHANNELS, 1)
    original.load_state_dict(state)
    image_B3HW = random(2, 3, SIDE, SIDE)
    with torch.no_grad():
        code_BDhw = original.quantize(original.quant_conv(original.encoder(image_B3HW)))[0]
        decoded_B3HW = original.decoder(original.post_quant_conv(code_BDhw))
    assert_close(model(image_B3HW).sample, decoded_B3HW, atol=2e-5, rtol=1e-5)


def test_the_canvas_draws_with_it(model):
    canvas = VQGAN(model, 64, 64, [torch.Generator().manual_seed(0)])
    image_B3HW = canvas.decode()
    assert image_B3HW.shape == (1, 3, 64, 64)
    (gradient,) = torch.autograd.grad(image_B3HW.square().sum(), list(canvas.parameters()))
    assert gradient.isfinite().all() and (gradient != 0).all()
    canvas.encode(image_B3HW.detach())
    assert canvas.indices().shape == (1, 64 // FACTOR, 64 // FACTOR)


def test_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = diffusers.VQModel.from_pretrained(tmp_path)
    image_B3HW = random(1, 3, SIDE, SIDE)
    assert torch.equal(loaded(image_B3HW).sample, model(image_B3HW).sample)
    heads = [layer.heads for layer in loaded.modules() if hasattr(layer, "heads")]
    assert heads == [1] * (2 * BLOCKS + 1 + 2 * (BLOCKS + 1) + 1)  # down, mid, up, mid


def test_it_takes_nothing_from_the_global_generator(state):
    before = torch.get_rng_state()
    convert(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_a_transformers_first_stage_in_half_precision(state, model):
    whole = {f"first_stage_model.{name}": value.half() for name, value in state.items()}
    whole |= {"transformer.head.weight": torch.zeros(1), "first_stage_model.loss.w": torch.zeros(1)}
    found = convert(whole).state_dict()
    expected = {name: value.half().float() for name, value in model.state_dict().items()}
    assert_close(found, expected, atol=0, rtol=0)


def test_files(state, model, tmp_path, monkeypatch):
    """Of safetensors and of pytorch_lightning, whose classes stand in the pickle."""
    code_BDhw = random(1, 16, 4, 4)
    expected = model.decode(code_BDhw).sample
    save_file(state, tmp_path / "a.safetensors")
    assert torch.equal(load_taming(tmp_path / "a.safetensors").decode(code_BDhw).sample, expected)

    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, name, module)
        callbacks = {module.ModelCheckpoint: {"best_model_score": torch.ones(())}}
        state = {**state, "loss.discriminator.weight": torch.zeros(2)}
        torch.save(
            {"epoch": 3, "state_dict": state, "callbacks": callbacks, "optimizer_states": [{}]},
            tmp_path / "a.ckpt",
        )
    with pytest.raises(UsageError, match="is a pickle.*give trust_pickle=True"):
        load_taming(tmp_path / "a.ckpt")
    before = torch.serialization.get_safe_globals()
    loaded = load_taming(tmp_path / "a.ckpt", trust_pickle=True)
    assert torch.equal(loaded.decode(code_BDhw).sample, expected)
    assert set(torch.serialization.get_safe_globals()) == set(before)


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


def test_bad_files(tmp_path, capsys):
    with pytest.raises(UsageError, match="There are no weights"):
        load_taming(tmp_path / "none.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"no pickle")
    with pytest.raises(ClipguideError, match="cannot be read"):
        load_taming(tmp_path / "b.ckpt", trust_pickle=True)
    torch.save({"state_dict": Harmful()}, tmp_path / "c.ckpt")
    with pytest.raises(ClipguideError, match="cannot be read"):
        load_taming(tmp_path / "c.ckpt", trust_pickle=True)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda state: {}, UsageError, "no VQGAN of taming-transformers: .* and 3 more"),
        (lambda state: {0: torch.zeros(1)}, UsageError, "no VQGAN of taming-transformers"),
        (
            lambda state: {n: v for n, v in state.items() if not n.startswith("quantize")},
            UsageError,
            "lacks a usable quantize.embedding.weight",
        ),
        (
            lambda state: {**state, "decoder.conv_out.weight": torch.zeros(3)},
            UsageError,
            "lacks a usable decoder.conv_out.weight",
        ),
        (
            lambda state: random_state(widths=(20,)),
            UsageError,
            "widths .20. are no multiples of 32",
        ),
        (
            lambda state: {n: v for n, v in state.items() if "up.1.block.0.norm" not in n},
            ClipguideError,
            "it lacks decoder.up.1.block.0.norm1.bias, .* and 1 more",
        ),
        (
            lambda state: {**state, "encoder.extra.weight": torch.zeros(1)},
            ClipguideError,
            "it has encoder.extra.weight, of which nothing is known",
        ),
        (
            lambda state: {**state, "encoder.mid.attn_1.q.weight": torch.zeros(64, 32, 1, 1)},
            ClipguideError,
            r"encoder.mid.attn_1.q.weight has the shape \(64, 32, 1, 1\), not \(64, 64\)",
        ),
    ],
)
def test_bad_weights(state, change, error, said):
    with pytest.raises(error, match=said) as caught:
        convert(change(state))
    assert type(caught.value) is error
