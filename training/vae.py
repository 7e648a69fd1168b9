"""The generator's autoencoder: 128 px -> 16x16x4 (f8), a diffusers ``AutoencoderKL``.

    python -m training.vae --minutes 30                  # resumes; the generator's export ships it
    python -m training.vae --minutes 30 --decoder-only   # once a U-Net knows the latents

Loss: absolute error, plus Lite0's feature distances (a small LPIPS: unit-normalised features of
four strides, Zhang et al. 2018), plus a slight KL (Rombach et al. 2022). Half of the steps see
64-pixel crops, four times as many for the same time; the other half see whole pictures, so that
the group norms know both.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from clipguide.finetune import Ema
from training import common
from training.pictures import Pictures

CACHE = common.CACHE / "vae"
app = typer.Typer(add_completion=False, help=__doc__)


def build():
    """The architecture: 2.6 M parameters, no attention, so that any multiple of 8 pixels works."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


class Perceptual(torch.nn.Module):
    """Distance of Lite0's features at strides 2 to 16: images_B3HW in [-1, 1] -> loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = common.backbone(0).to(memory_format=torch.channels_last).requires_grad_(False)

    def features(self, x_B3HW: Tensor) -> list[Tensor]:
        out, x = [], self.net.bn1(self.net.conv_stem(x_B3HW))
        for block in self.net.blocks[:5]:
            x = block(x)
            out.append(F.normalize(x, dim=1))
        return out

    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        with torch.no_grad():
            want = self.features(b_B3HW)
        return sum((a - b).square().sum(1).mean() for a, b in zip(self.features(a_B3HW), want)) / 5


@torch.no_grad()
def psnr(vae, image_N3HW: Tensor) -> float:
    """Mean over pictures of -10·log10(MSE), pixels in [0, 1], decoded from the mean latent."""
    out = []
    for x_B3HW in (image_N3HW * 2 - 1).split(16):
        y_B3HW = vae.decode(vae.encode(x_B3HW).latent_dist.mean).sample.clamp(-1, 1)
        out.append(
            -10 * torch.log10(((x_B3HW - y_B3HW) / 2).square().flatten(1).mean(1).clamp_min(1e-8))
        )
    return torch.cat(out).mean().item()


@app.command()
def train(
    minutes: float = 30, lr: float = 1e-3, batch: int = 8, decoder_only: bool = False
) -> None:
    """Train for so many minutes of processor time more; the rate falls within this call.

    With `--decoder-only` the latents stay what they are, so a U-Net trained on them stays valid.
    """
    pictures, rng = Pictures(), np.random.default_rng()
    vae = build().to(memory_format=torch.channels_last)
    path, log = CACHE / "checkpoint.pt", common.Log(CACHE / "log.csv")
    if path.exists():
        vae.load_state_dict(torch.load(path, weights_only=True))
    vae.encoder.requires_grad_(not decoder_only)
    vae.quant_conv.requires_grad_(not decoder_only)
    perceptual, average = Perceptual(), Ema(vae, 0.998)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    held = pictures.held_out(limit=96)
    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * done))
        whole = rng.random() < 0.5
        x = pictures.batch(rng, batch // 2 if whole else 2 * batch, 128 if whole else 64)
        x_B3HW = (x * 2 - 1).to(memory_format=torch.channels_last)
        with common.autocast():
            posterior = vae.encode(x_B3HW).latent_dist
            y_B3HW = vae.decode(posterior.sample()).sample
        y_B3HW = y_B3HW.float()
        l1 = (y_B3HW - x_B3HW).abs().mean()
        l2 = (y_B3HW - x_B3HW).square().mean()
        features, kl = perceptual(y_B3HW, x_B3HW), posterior.kl().float().mean() / x[0].numel()
        loss = l1 + l2 + 0.15 * features + 1e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(vae)
        step += 1
        if step % 200 == 0:
            log(
                step=step,
                minutes=(time.process_time() - start) / 60,
                l1=l1.item(),
                features=features.item(),
                kl=kl.item(),
                psnr=psnr(average.model, held),
            )
            torch.save(average.model.state_dict(), path)
    torch.save(average.model.state_dict(), path)
    print(f"held-out PSNR {psnr(average.model, pictures.held_out()):.2f} dB")
    log.plot()
    with torch.no_grad():
        latent = average.model.encode(held[:32] * 2 - 1).latent_dist.mean
        common.before_and_after(
            CACHE / "sheet.png", held[:32], average.model.decode(latent).sample / 2 + 0.5
        )


def load():
    """The trained autoencoder, float32."""
    vae = build()
    vae.load_state_dict(torch.load(CACHE / "checkpoint.pt", weights_only=True))
    return vae.eval().requires_grad_(False)


if __name__ == "__main__":
    app()
