"""Train the generator's autoencoder, a diffusers ``AutoencoderKL``.

It encodes images of 128 px, and later of 256 px, as latents of 16x16x8.

    python -m training.vae small --minutes 50  # at 128 px, factor 8; resumes
    python -m training.vae grow --minutes 40   # adds an outer level: 256 px, the same latents
    python -m training.vae figures             # held-out PSNR of the latest small autoencoder

`small` learns the latents. Its loss is the sum of these terms:

- the absolute error and the squared error;
- the distance of Lite0's features at five blocks, unit-normalised, as a small LPIPS (Zhang et al.
  2018);
- a slight KL (Rombach et al. 2022);
- 1 - cosine between a 1x1 convolution of the latents and Lite0's features at strides 8 and 16
  (VA-VAE, Yao et al. 2025).

After a third of the time, the latents of a step can change before they are decoded. Some are shrunk
to 0.5 or 0.75, and the target is the image shrunk to the same scale (EQ-VAE, Kouzelis et al. 2025).
Others receive noise of up to 0.15 of their standard deviation. Then a latent that the generator
draws with a small error also decodes well.

`grow` adds an outer level of 16 channels. Its encoder learns the latents that the small autoencoder
has for the halved image, so a generator trained on those latents works unchanged. Its decoder is
trained at 256 px.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from training import common
from training.loop import Loop, averaged
from training.pictures import Pictures

CACHE = common.CACHE / "vae"
SMALL, LARGE = CACHE / "small", CACHE / "large"
WIDTHS, CHANNELS = (16, 48, 128, 192), 8
app = typer.Typer(add_completion=False, help=__doc__)


def build(large: bool = False):
    """Return the architecture: 6 M parameters, no attention.

    The side of an image is any multiple of 8 pixels, or of 16 if `large`.
    """
    from diffusers import AutoencoderKL

    widths = (16, *WIDTHS) if large else WIDTHS
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256 if large else 128,
    )


class Perceptual(nn.Module):
    """Lite0's features at strides 2, 4, 8, 16 and 16, of images_B3HW in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = common.backbone(0).to(memory_format=torch.channels_last).requires_grad_(False)

    def features(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return five feature maps, each normalised over its channels."""
        out, x = [], self.net.bn1(self.net.conv_stem(x_B3HW))
        for block in self.net.blocks[:5]:
            x = block(x)
            out.append(F.normalize(x, dim=1))
        return out

    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        """Return the mean squared distance of the features of two images."""
        with torch.no_grad():
            want = self.features(b_B3HW)
        return distance(self.features(a_B3HW), want)


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum((x - y).square().sum(1).mean() for x, y in zip(a, b)) / len(a)


class Aligned(nn.Module):
    """The autoencoder, with the 1x1 convolutions that predict Lite0's features from its latents."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = build().to(memory_format=torch.channels_last)
        self.read_8, self.read_16 = nn.Conv2d(CHANNELS, 40, 1), nn.Conv2d(CHANNELS, 112, 1)

    def misalignment(self, z_B8hw: Tensor, features: list[Tensor]) -> Tensor:
        """Return 1 - the mean cosine to Lite0's features at strides 8 and 16."""
        at_8 = F.cosine_similarity(self.read_8(z_B8hw), features[2], dim=1)
        at_16 = F.cosine_similarity(self.read_16(F.avg_pool2d(z_B8hw, 2)), features[4], dim=1)
        return 1 - (at_8.mean() + at_16.mean()) / 2


@torch.no_grad()
def psnr(vae, image_N3HW: Tensor) -> float:
    """Return the mean over images of -10·log10(MSE) in dB, for pixels in [0, 1].

    The reconstruction is decoded from the mean latent.
    """
    out = []
    for x_B3HW in (image_N3HW * 2 - 1).split(8):
        y_B3HW = vae.decode(vae.encode(x_B3HW).latent_dist.mean).sample.clamp(-1, 1)
        error_B = ((x_B3HW - y_B3HW) / 2).square().flatten(1).mean(1)
        out.append(-10 * torch.log10(error_B.clamp_min(1e-8)))
    return torch.cat(out).mean().item()


def resized(x: Tensor, scale: float) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)


@app.command()
def small(minutes: float = 50, lr: float = 1e-3, device: str = "cpu", batch: int = 24) -> None:
    """Train at 128 px, on `batch` crops of 64 px.

    Every third step trains on a third as many whole images.
    """
    pictures, rng = Pictures(), np.random.default_rng()
    model, perceptual = Aligned().to(device), Perceptual().to(device)
    loop = Loop(SMALL, model, minutes=minutes, lr=lr, weight_decay=1e-3, fall=0.6)
    held, deviation = pictures.held_out(128, limit=64), 1.0
    for done in loop:
        whole = loop.index % 3 == 0
        x = pictures.batch(rng, batch // 3 if whole else batch, 128, None if whole else 64)
        x_B3HW = (x.to(device) * 2 - 1).to(memory_format=torch.channels_last)
        late = done > 0.33
        with common.autocast(device):
            posterior = model.vae.encode(x_B3HW).latent_dist
            z = posterior.sample()
        features, target = perceptual.features(x_B3HW), x_B3HW
        align = model.misalignment(z.float(), features)
        deviation = 0.99 * deviation + 0.01 * z.detach().float().std().item()
        if late and rng.random() < 0.5:
            scale = (0.5, 0.75)[rng.integers(2)]
            z, target = resized(z.float(), scale), resized(x_B3HW, scale)
            features = perceptual.features(target)
        elif late and rng.random() < 0.5:
            z = z + 0.15 * deviation * torch.rand(len(z), 1, 1, 1, device=device) * (
                torch.randn_like(z)
            )
        with common.autocast(device):
            y = model.vae.decode(z).sample.float()
        l1, l2 = (y - target).abs().mean(), (y - target).square().mean()
        seen = distance(perceptual.features(y), features)
        kl = posterior.kl().float().mean() / x[0].numel()
        loss = l1 + l2 + 0.15 * seen + (1e-3 if late else 1e-4) * kl + 0.15 * align
        loop.step(loss, l1=l1, features=seen, kl=kl, align=align)
        if loop.index % 1000 == 0:
            print(f"held-out PSNR {psnr(loop.average.model.vae, held):.2f} dB", flush=True)
    print(f"held-out PSNR {psnr(loop.average.model.vae, pictures.held_out(128)):.2f} dB")
    _sheet(loop.average.model.vae, held[:32], SMALL / "sheet.png")


def grown():
    """Return the large autoencoder with the small one's weights in its inner levels."""
    inner, outer = load(), build(large=True)
    given, state = inner.state_dict(), outer.state_dict()
    for name, value in given.items():
        parts = name.split(".")
        if name.startswith("encoder.down_blocks."):
            parts[2] = str(int(parts[2]) + 1)
        name = ".".join(parts)
        if name.startswith("encoder.conv_in"):
            continue  # the first convolution reads images of twice the side
        assert state[name].shape == value.shape, name
        state[name] = value
    outer.load_state_dict(state)
    return outer.to(memory_format=torch.channels_last)


class Grown(nn.Module):
    """The large autoencoder, as the attribute `vae` that the checkpoint expects."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = grown()


@app.command()
def grow(minutes: float = 40, lr: float = 8e-4, device: str = "cpu", batch: int = 12) -> None:
    """Train the large autoencoder on crops of 128 px from images of 256 px.

    The targets of its encoder and the inputs of its decoder are the latents that the small
    autoencoder has for the halved crop.
    """
    pictures, rng = Pictures(), np.random.default_rng()
    model, perceptual, inner = Grown().to(device), Perceptual().to(device), load().to(device)
    inner = inner.to(memory_format=torch.channels_last)
    loop = Loop(LARGE, model, minutes=minutes, lr=lr, weight_decay=1e-3, fall=0.6)
    held = pictures.held_out(256, limit=32)
    for _ in loop:
        x = pictures.batch(rng, batch, 256, 128).to(device) * 2 - 1
        x_B3HW = x.contiguous(memory_format=torch.channels_last)
        half = resized(x_B3HW, 0.5)
        with torch.no_grad(), common.autocast(device):
            posterior = inner.encode(half).latent_dist
        if loop.index % 3 == 0:
            with common.autocast(device):
                found = model.vae.encode(x_B3HW).latent_dist.mean.float()
            far = (found - posterior.mean.float()).square().mean() / posterior.mean.float().var()
            loop.step(far, encoder=far)
            continue
        with common.autocast(device):
            y = model.vae.decode(posterior.sample()).sample.float()
        l1, l2 = (y - x_B3HW).abs().mean(), (y - x_B3HW).square().mean()
        seen = perceptual(y, x_B3HW)
        loop.step(l1 + l2 + 0.2 * seen, l1=l1, features=seen)
        if loop.index % 500 == 1:
            print(f"held-out PSNR {psnr(loop.average.model.vae, held):.2f} dB", flush=True)
    print(f"held-out PSNR {psnr(loop.average.model.vae, pictures.held_out(256)):.2f} dB")
    _sheet(loop.average.model.vae, held, LARGE / "sheet.png")


def _sheet(vae, held_N3HW: Tensor, path) -> None:
    with torch.no_grad():
        latent = vae.encode(held_N3HW * 2 - 1).latent_dist.mean
        common.before_and_after(path, held_N3HW, vae.decode(latent).sample / 2 + 0.5)


def load(large: bool = False):
    """Return the trained autoencoder, float32."""
    state = averaged(LARGE if large else SMALL)
    vae = build(large)
    vae.load_state_dict(
        {k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")}
    )
    return vae.eval().requires_grad_(False)


@app.command()
def figures() -> None:
    """Print the held-out PSNR of the latest small autoencoder."""
    print(f"held-out PSNR {psnr(load(), Pictures().held_out(128)):.2f} dB")


if __name__ == "__main__":
    app()
