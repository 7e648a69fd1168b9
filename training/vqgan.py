"""The mini VQGAN: 128 px -> 16x16 codes of 1,024, a diffusers ``VQModel`` (Esser et al. 2021).

    python -m training.vqgan train --minutes 25   # processor minutes; goes on from the last weights
    python -m training.vqgan export               # clipguide/mini/vqgan, fp16

The weights begin as the checkpoint's, else the shipped ones, else (`--fresh`) the VAE's.

Loss: absolute error, Lite0 features, the commitment of VQ-VAE, and after a third of the run a
hinge adversarial loss of a small patch discriminator, its weight set by the ratio of gradients at
the decoder's last layer. Codes that no one uses start again at an encoder's output.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from clipguide.finetune import Ema
from training import common, vae
from training.pictures import Pictures

CACHE = common.CACHE / "vqgan"
CODES = 1024
app = typer.Typer(add_completion=False, help=__doc__)


def build():
    """The VAE's encoder and decoder around a codebook of 1,024 vectors of 8."""
    from diffusers import VQModel

    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        num_vq_embeddings=CODES,
        sample_size=128,
    )


def shipped() -> dict[str, Tensor]:
    """The weights of the package."""
    from safetensors.torch import load_file

    state = load_file(common.MINI / "vqgan" / "diffusion_pytorch_model.safetensors")
    return {name: value.float() for name, value in state.items()}


def start_from_vae(model) -> None:
    """Copy what has the same name and shape; the codebook starts when the first batch is seen."""
    theirs, mine = vae.load().state_dict(), model.state_dict()
    model.load_state_dict(
        {**mine, **{k: v for k, v in theirs.items() if k in mine and mine[k].shape == v.shape}}
    )


def discriminator() -> nn.Module:
    """Patches of 34 pixels -> one logit each (Isola et al. 2017), without batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.GroupNorm(8, 64),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1),
        nn.GroupNorm(8, 128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 3, 1, 1),
    )


def quantize(model, z_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(straight-through code vectors_BChw, codebook and commitment loss, codes_N)."""
    quantised, loss, (_, _, codes) = model.quantize(z_BChw)
    return quantised, loss, codes.flatten()


@torch.no_grad()
def revive(model, z_BChw: Tensor, used_N: Tensor) -> None:
    """Move codes unused since the last call to random encoder outputs of this batch."""
    dead = (used_N == 0).nonzero().flatten()
    pool = z_BChw.permute(0, 2, 3, 1).flatten(0, 2)
    model.quantize.embedding.weight[dead] = pool[torch.randint(len(pool), (len(dead),))]


@torch.no_grad()
def measure(model, image_N3HW: Tensor) -> tuple[float, float]:
    """(mean PSNR in dB, share of the codes used) over pictures in [0, 1]."""
    psnr, used = [], torch.zeros(CODES, dtype=torch.bool)
    for x in (image_N3HW * 2 - 1).split(16):
        z, _, codes = quantize(model, model.quant_conv(model.encoder(x)))
        y = model.decoder(model.post_quant_conv(z)).clamp(-1, 1)
        psnr.append(-10 * torch.log10(((x - y) / 2).square().flatten(1).mean(1).clamp_min(1e-8)))
        used[codes] = True
    return torch.cat(psnr).mean().item(), used.float().mean().item()


@app.command()
def train(minutes: float = 25, lr: float = 8e-4, batch: int = 8, fresh: bool = False) -> None:
    """Train for so many minutes of processor time more; the rate falls within this call."""
    pictures, rng = Pictures(), np.random.default_rng()
    model, critic = build().to(memory_format=torch.channels_last), discriminator()
    path, log = CACHE / "checkpoint.pt", common.Log(CACHE / "log.csv")
    if fresh:
        start_from_vae(model)
    elif path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        critic.load_state_dict(state["critic"])
    else:
        model.load_state_dict(shipped())
    perceptual, average = vae.Perceptual(), Ema(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=lr / 2, betas=(0.5, 0.9))
    held, used, start, step = (
        pictures.held_out(128, limit=96),
        torch.zeros(CODES),
        time.process_time(),
        0,
    )
    last = model.decoder.conv_out.weight
    while (done := (time.process_time() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * done))
        whole = rng.random() < 0.5
        crop, count = (None, batch // 2) if whole else (64, 2 * batch)
        x = pictures.batch(rng, count, 128, crop) * 2 - 1
        x = x.to(memory_format=torch.channels_last)
        with common.autocast():
            z = model.quant_conv(model.encoder(x))
        z = z.float()
        if (fresh and step == 0) or (step % 100 == 99 and done < 0.8):
            revive(model, z, used)
            used.zero_()
        code_z, commit, codes = quantize(model, z)
        used += torch.bincount(codes, minlength=CODES)
        with common.autocast():
            y = model.decoder(model.post_quant_conv(code_z)).float()
        plain = (y - x).abs().mean() + (y - x).square().mean() + 0.15 * perceptual(y, x)
        loss = plain + commit
        if done > 1 / 3:
            fool = -critic(y).mean()
            (g_plain,) = torch.autograd.grad(plain, last, retain_graph=True)
            (g_fool,) = torch.autograd.grad(fool, last, retain_graph=True)
            loss = (
                loss + 0.1 * fool * (g_plain.norm() / (g_fool.norm() + 1e-6)).clamp(max=10).detach()
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        if done > 0.3:
            hinge = F.relu(1 - critic(x)).mean() + F.relu(1 + critic(y.detach())).mean()
            critic_optimizer.zero_grad(set_to_none=True)
            hinge.backward()
            critic_optimizer.step()
        step += 1
        if step % 200 == 0:
            db, share = measure(average.model, held)
            log(
                step=step,
                minutes=(time.process_time() - start) / 60,
                loss=plain.item(),
                psnr=db,
                codes=share,
            )
            torch.save({"model": average.model.state_dict(), "critic": critic.state_dict()}, path)
    torch.save({"model": average.model.state_dict(), "critic": critic.state_dict()}, path)
    log.plot()
    with torch.no_grad():
        z, _, _ = quantize(
            average.model, average.model.quant_conv(average.model.encoder(held[:32] * 2 - 1))
        )
        after = average.model.decoder(average.model.post_quant_conv(z)) / 2 + 0.5
        common.before_and_after(CACHE / "sheet.png", held[:32], after)


def load():
    """The trained VQGAN, float32."""
    model = build()
    model.load_state_dict(torch.load(CACHE / "checkpoint.pt", weights_only=True)["model"])
    return model.eval().requires_grad_(False)


@app.command()
def export(folder: Path = common.MINI / "vqgan") -> None:
    """Write the folder in fp16."""
    load().half().save_pretrained(folder)
    common.write_sums()


if __name__ == "__main__":
    app()
