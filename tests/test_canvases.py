"""Canvases: one contract for all, and what is each one's own, against references."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny_pipelines import kl
from torch.testing import assert_close

from clipguide.canvases import VQGAN, Canvas, Fourier, Latent, Masked, Mirrored, Pixels
from clipguide.canvases.latent import tiling
from clipguide.errors import UsageError

HEIGHT, WIDTH = 24, 32


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
    ).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def autoencoders():
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    return {"kl": kl().requires_grad_(False), "tiny": tiny.requires_grad_(False)}


KINDS = ["pixels", "fourier", "kl", "tiny", "vqgan", "vqgan soft"]


@pytest.fixture
def make(vq, autoencoders):
    def make(kind, *seeds, height=HEIGHT, width=WIDTH) -> Canvas:
        found = generators(*seeds)
        if kind in ("pixels", "fourier"):
            return {"pixels": Pixels, "fourier": Fourier}[kind](height, width, found)
        if kind in autoencoders:
            return Latent(autoencoders[kind], height, width, found)
        return VQGAN(vq, height, width, found, temperature=1.0 if "soft" in kind else 0.0)

    return make


def smooth(batch=2, height=HEIGHT, width=WIDTH) -> torch.Tensor:
    small = torch.rand(batch, 3, 5, 6, generator=torch.Generator().manual_seed(9))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0.05, 0.95)


@pytest.mark.parametrize("kind", KINDS)
def test_contract(make, kind):
    canvas = make(kind, 1, 2)
    image_B3HW = canvas.decode()
    assert image_B3HW.shape == (2, 3, HEIGHT, WIDTH) and image_B3HW.dtype == torch.float32
    alone_B3HW = torch.cat([make(kind, seed).decode() for seed in (1, 2)])
    assert_close(alone_B3HW, image_B3HW, atol=1e-5, rtol=0)
    assert torch.equal(make(kind, 1, 2).decode(), image_B3HW)
    assert not torch.equal(image_B3HW[0], image_B3HW[1])
    other = make(kind, 3, 4)
    other.load_state_dict(canvas.state_dict())
    assert torch.equal(other.decode(), image_B3HW)
    assert set(canvas.state_dict()) == {name for name, _ in canvas.named_parameters()}
    before = {name: value.clone() for name, value in canvas.state_dict().items()}
    if kind != "pixels":
        canvas.project_()  # it begins where images are
        assert all(torch.equal(value, before[name]) for name, value in canvas.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_improves_it(make, kind):
    """A few steps of Adam towards an image bring every one of the batch nearer."""
    canvas, wanted_B3HW = make(kind, 1, 2), smooth()

    def loss_B():
        return (canvas.decode() - wanted_B3HW).square().flatten(1).mean(1)

    before_B = loss_B().detach()
    optimizer = torch.optim.Adam(canvas.parameters(), lr=0.03)
    for _ in range(20):
        optimizer.zero_grad()
        loss_B().sum().backward()
        optimizer.step()
        canvas.project_()
    assert (loss_B() < 0.9 * before_B).all()


@pytest.mark.parametrize("kind", ["pixels", "fourier"])
@pytest.mark.parametrize("size", [(24, 32), (8, 8), (25, 33), (31, 9)])
def test_encode_is_exact(make, kind, size):
    canvas = make(kind, 1, 2, height=size[0], width=size[1])
    wanted_B3HW = smooth(2, *size)
    canvas.encode(wanted_B3HW)
    assert_close(canvas.decode(), wanted_B3HW, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["kl", "tiny", "vqgan"])
def test_encode_is_the_autoencoders(make, vq, autoencoders, kind):
    canvas = make(kind, 1, 2)
    image_B3HW = smooth()
    canvas.encode(image_B3HW)
    model = autoencoders.get(kind, vq)
    with torch.no_grad():
        encoded = model.encode(2 * image_B3HW - 1)
        latents = encoded.latent_dist.mode() if kind == "kl" else encoded.latents
        expected = model.decode(latents).sample / 2 + 0.5
    assert_close(canvas.decode(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["pixels", "fourier", "kl", "vqgan soft"])
def test_gradient_by_finite_differences(make, kind):
    canvas = make(kind, 1)
    canvas.encode(smooth(1))
    weight = torch.randn(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))

    def value():
        return (canvas.decode().double() * weight).sum()

    parameters = list(canvas.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
        step = 8e-3 / direction.norm()
        with torch.no_grad():
            parameter += step * direction
            above = value()
            parameter -= 2 * step * direction
            below = value()
            parameter += step * direction
        assert_close(
            ((above - below) / (2 * step)).item(),
            (gradient * direction).sum().item(),
            rtol=2e-2,
            atol=2e-2,
        )


# Each its own


def test_fourier_step_is_as_large_at_every_scale():
    """Numbers of one size in the spectrum: amplitudes in the image fall as 1/f."""
    canvas = Fourier(64, 64, generators(*range(8)))
    plain = canvas.decode().logit()
    power = torch.fft.rfft2(plain).abs().square().mean((0, 1))
    low, high = power[0, 4].sqrt(), power[0, 16].sqrt()
    assert 2.5 < low / high < 6.5  # 4


def test_fourier_tiles():
    """The step over the wrapped seam is as large as those inside."""
    image = Fourier(64, 64, generators(*range(8))).decode()
    inside = (image[..., 1:] - image[..., :-1]).abs().mean()
    seam = (image[..., 0] - image[..., -1]).abs().mean()
    assert abs(seam / inside - 1) < 0.05


def test_pixels_project():
    canvas = Pixels(16, 16, generators(0))
    with torch.no_grad():
        canvas.levels[0] += 3 / canvas.scales[0]
        canvas.levels[0][..., 0] -= 6 / canvas.scales[0]
    shown = canvas.decode()
    canvas.project_()
    assert_close(canvas.decode(), shown, atol=1e-6, rtol=0)
    assert_close(canvas._sum(), shown, atol=1e-6, rtol=0)


def test_pixels_of_a_step_of_one_length_are_smooth():
    """As of Adam, whose first step moves every parameter by ± the rate: the power of the image
    falls with the frequency by more than 1/f², and is no white noise of the finest level's."""
    canvas = Pixels(64, 64, generators(0))
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for level in canvas.levels:
            level.copy_(0.05 * torch.randn(level.shape, generator=chance).sign())
        power_HW = torch.fft.fft2(canvas.decode()[0] - 0.5).abs().square().mean(0)
    frequency = torch.fft.fftfreq(64)
    radius_HW = (frequency[:, None].square() + frequency.square()).sqrt()

    def power(low, high):
        return power_HW[(radius_HW >= low) & (radius_HW < high)].mean()

    assert power(0.25, 0.5) < power(0.125, 0.25) / 4 < power(0.0625, 0.125) / 16


def test_pixels_gradient_leads_back_inside():
    canvas = Pixels(16, 16, generators(0))
    with torch.no_grad():
        canvas.levels[0] += 3 / canvas.scales[0]
    (down,) = torch.autograd.grad(canvas.decode().sum(), canvas.levels[0])
    assert down.abs().sum() > 0  # descent makes it darker
    (up,) = torch.autograd.grad(-canvas.decode().sum(), canvas.levels[0])
    assert up.abs().sum() == 0


def test_vqgan_rounds_and_passes_the_gradient_on(vq):
    """The image is that of VQModel.decode; the gradient is the one at the codes."""
    canvas = VQGAN(vq, HEIGHT, WIDTH, generators(1))
    with torch.no_grad():
        canvas.latents_BDhw += 0.2 * torch.randn(canvas.latents_BDhw.shape)
    latents = canvas.latents_BDhw.detach()
    assert_close(canvas.decode(), vq.decode(latents).sample / 2 + 0.5, atol=1e-5, rtol=0)
    codes = vq.quantize.embedding.weight[canvas.indices()].permute(0, 3, 1, 2)
    codes = codes.detach().requires_grad_()
    decoded = vq.decode(codes, force_not_quantize=True).sample / 2 + 0.5
    (expected,) = torch.autograd.grad(decoded.square().sum(), codes)
    (gradient,) = torch.autograd.grad(canvas.decode().square().sum(), canvas.latents_BDhw)
    assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_vqgan_soft_codes_harden(vq):
    hard = VQGAN(vq, HEIGHT, WIDTH, generators(1))
    gaps = []
    for temperature in (1.0, 0.1, 0.001):
        soft = VQGAN(vq, HEIGHT, WIDTH, generators(1), temperature=temperature)
        gaps.append((soft.decode() - hard.decode()).abs().max().item())
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4


def test_vqgan_project(vq):
    canvas = VQGAN(vq, HEIGHT, WIDTH, generators(1))
    with torch.no_grad():
        canvas.latents_BDhw *= 100
    canvas.project_()
    low, high = vq.quantize.embedding.weight.aminmax(dim=0)
    latents = canvas.latents_BDhw.movedim(1, -1)
    assert (latents >= low).all() and (latents <= high).all()


# What goes wrong


@pytest.mark.parametrize(
    ("kind", "sides", "message"),
    [
        ("pixels", (4, 32), "8 to 8192"),
        ("fourier", (32, 10000), "8 to 8192"),
        ("kl", (31, 32), "multiple of 2"),
        ("vqgan", (32, 33), "multiple of 2"),
    ],
)
def test_odd_sizes(make, kind, sides, message):
    with pytest.raises(UsageError, match=message):
        make(kind, 1, height=sides[0], width=sides[1])


def test_what_does_not_fit(make, vq):
    with pytest.raises(UsageError, match="32x24"):
        make("pixels", 1).encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="at least one image"):
        make("fourier")
    with pytest.raises(UsageError, match="temperature"):
        VQGAN(vq, HEIGHT, WIDTH, generators(1), temperature=-1)


# Tiles: an image that is moved around its edges is the image of what is moved so


@pytest.mark.parametrize("kind", ["kl", "tiny", "vqgan"])
def test_a_tiling_decoder_has_no_edges(vq, autoencoders, kind):
    model = vq if kind == "vqgan" else autoencoders[kind]
    tiled = tiling(model)
    channels = model.config.latent_channels
    latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))

    def seam(model):
        """How much it matters where the edges are."""
        given = {"force_not_quantize": True} if kind == "vqgan" else {}
        one = model.decode(latents, **given).sample
        other = model.decode(latents.roll((3, 2), (-2, -1)), **given).sample
        factor = one.shape[-1] // 8
        return (one.roll((3 * factor, 2 * factor), (-2, -1)) - other).abs().max()

    assert seam(tiled) < 1e-4 < 0.01 < seam(model)
    assert all(m.padding_mode == "zeros" for m in model.modules() if hasattr(m, "padding_mode"))


def test_tiling_pixels_have_no_edges():
    """Moved by the size of the coarsest pixel."""

    def seam(**settings):
        canvas, moved = (Pixels(32, 32, generators(0), **settings) for _ in range(2))
        coarsest = 32 // canvas.sizes[-1][0]
        for level in (*canvas.levels, *moved.levels):
            level.data = torch.randn(level.shape, generator=torch.Generator().manual_seed(1)) * 0.05
        for level, (height, _) in zip(moved.levels, moved.sizes, strict=True):
            by = coarsest * height // 32
            level.data = level.data.roll((by, by), (-2, -1))
        there = canvas.decode().roll((coarsest, coarsest), (-2, -1))
        return (there - moved.decode()).abs().max()

    assert seam(tile=True) < 1e-5 < 0.01 < seam()


def test_tiling_pixels_of_any_size():
    for size in ((24, 40), (18, 30), (33, 32)):
        canvas = Pixels(*size, generators(0), tile=True)
        assert canvas.decode().shape[-2:] == size
        image = smooth(1, *size)
        canvas.encode(image)
        assert_close(canvas.decode(), image, atol=1e-5, rtol=0)


# Wrapped


def test_masked_and_mirrored_are_canvases():
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    image = torch.rand(1, 3, 16, 16)
    canvas = Masked(Pixels(16, 16, generators(0)), image, mask)
    assert torch.equal(canvas.decode()[..., 8:], image[..., 8:])
    assert not torch.equal(canvas.decode()[..., :8], image[..., :8])
    canvas.decode().sum().backward()
    assert canvas.canvas.levels[0].grad[..., :8].abs().min() > 0
    assert canvas.canvas.levels[0].grad[..., 8:].abs().max() == 0
    mirrored = Mirrored(Pixels(16, 16, generators(0)), "vertical")
    assert torch.equal(mirrored.decode(), mirrored.decode().flip(-2))
    mirrored.encode(image)
    assert_close(mirrored.decode(), (image + image.flip(-2)) / 2, atol=1e-5, rtol=0)
    assert set(mirrored.state_dict()) == {f"canvas.{k}" for k in mirrored.canvas.state_dict()}
    with pytest.raises(UsageError, match="of one size"):
        Masked(Pixels(16, 16, generators(0)), image, mask[:8])
    with pytest.raises(UsageError, match="no symmetry"):
        Mirrored(Pixels(16, 16, generators(0)), "round")


def test_fourier_leads_back_from_black_and_white():
    """The sigmoid is flat there; the gradient has a slope of 0.05 at least, and elsewhere its own.
    """
    canvas = Fourier(8, 8, [torch.Generator().manual_seed(0)])
    for value, slope in ((0.999, 0.05), (0.5, 0.25)):
        canvas.encode(torch.full((1, 3, 8, 8), value))
        (leaf,) = torch.autograd.grad(canvas.decode().sum(), [canvas.spectrum_B3HF2])
        plain = torch.view_as_complex(canvas.spectrum_B3HF2.detach()) * canvas.scale_HF
        grey = torch.fft.irfft2(plain, s=(8, 8)).requires_grad_()
        logit = torch.einsum("rc,bchw->brhw", canvas.mix_33, grey)
        expected = torch.autograd.grad((slope * logit).sum(), [grey])[0]
        constant = expected.sum((2, 3)) / 64 * canvas.scale_HF[0, 0]  # of frequency 0
        assert_close(leaf[:, :, 0, 0, 0], constant, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 0.5, "shift_factor": 0.3},
        {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [2.0] * 4},
    ],
    ids=lambda config: " ".join(config),
)
def test_latents_have_deviation_1(config):
    """z / factor + shift, or with moments of each channel (SDXL) z · std / factor + mean;
    an image is encoded to the same."""
    from tiny_pipelines import kl

    vae = kl(**config)
    canvas = Latent(vae, 8, 8, [torch.Generator().manual_seed(0)])
    z = canvas.latents_BChw.detach()
    shift = torch.tensor(config.get("latents_mean", [config.get("shift_factor", 0.0)] * 4))
    std = config.get("latents_std", [1.0])[0]
    with torch.no_grad():
        expected = vae.decode(z * std / 0.5 + shift.view(1, -1, 1, 1)).sample / 2 + 0.5
        assert_close(canvas.decode(), expected)
        image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        canvas.encode(image)
        mode = vae.encode(image * 2 - 1).latent_dist.mode()
    assert_close(canvas.latents_BChw.detach(), (mode - shift.view(1, -1, 1, 1)) * 0.5 / std)
