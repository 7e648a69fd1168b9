"""Train the mini VQGAN, a diffusers ``VQModel`` (Esser et al. 2021).

It encodes 256 x 256 pixels as 32x32 codes of a codebook of 4,096.

    python -m training.vqgan train --minutes 45   # processor minutes in all; resumes
    python -m training.vqgan export               # clipguide/mini/vqgan, fp16

The training starts from the shipped weights. Their codebook can be smaller. The loss is the sum of
the absolute error, the squared error, the distance of Lite0's features and the commitment loss of
VQ-VAE (van den Oord et al. 2017). After a third of the run, a small patch discriminator adds a
hinge adversarial loss. The ratio of the gradients at the decoder's last layer sets its weight
(Esser et al. 2021, section 3.1). The training moves unused codes to latents far from all codes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor, nn

from training import common, critics, vae
from training.loop import Loop, averaged
from training.pictures import Pictures

CACHE = common.CACHE / "vqgan"
CODES, SIDE = 4096, 256
app = typer.Typer(add_completion=False, help=__doc__)


def build():
    """Return the architecture: 2.5 M parameters, no attention, a codebook of (CODES, 8)."""
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
        sample_size=SIDE,
    )


def shipped() -> tuple[nn.Module, int]:
    """Return the model of the package with CODES codes, and the number of codes that it ships with.

    The codes beyond that number are copies of the shipped codes.
    """
    from safetensors.torch import load_file

    state = load_file(common.MINI / "vqgan" / "diffusion_pytorch_model.safetensors")
    state = {name: value.float() for name, value in state.items()}
    own, model = state["quantize.embedding.weight"], build()
    state["quantize.embedding.weight"] = own[torch.arange(CODES) % len(own)]
    model.load_state_dict(state)
    return model, len(own)


class Rivals(nn.Module):
    """The VQGAN and its discriminator."""

    def __init__(self) -> None:
        super().__init__()
        model, self.own = shipped()
        self.vqgan = model.to(memory_format=torch.channels_last)
        self.critic = critics.patches()


def quantize(model, z_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise latents to their nearest codes.

    Returns:
        The straight-through code vectors_BChw, the codebook and commitment loss, and the
        indices codes_N.
    """
    quantised, loss, (_, _, codes) = model.quantize(z_BChw)
    return quantised, loss, codes.flatten()


@torch.no_grad()
def revive(model, image_B3HW: Tensor, used_K: Tensor) -> None:
    """Move the unused codes to latents of images, in place.

    The probability of a latent is proportional to its squared distance to the nearest used code, as
    in k-means++ (Arthur & Vassilvitskii 2007).

    Args:
        model: the VQGAN.
        image_B3HW: images in [-1, 1].
        used_K: how often each code was used.
    """
    code_KD, dead = model.quantize.embedding.weight, (used_K == 0).nonzero().flatten()
    if not len(dead):
        return
    z_ND = model.quant_conv(model.encoder(image_B3HW)).permute(0, 2, 3, 1).flatten(0, 2)
    living_KD = code_KD[used_K > 0]
    far_N = torch.cat([torch.cdist(z, living_KD).amin(1).square() for z in z_ND.split(2048)])
    code_KD[dead] = z_ND[torch.multinomial(far_N + 1e-9, len(dead))]


@torch.no_grad()
def measure(model, image_N3HW: Tensor) -> tuple[float, float]:
    """Return the mean PSNR in dB and the share of the codes used, over images in [0, 1]."""
    psnr, used = [], torch.zeros(len(model.quantize.embedding.weight), dtype=torch.bool)
    for x in (image_N3HW * 2 - 1).split(8):
        z, _, codes = quantize(model, model.quant_conv(model.encoder(x)))
        y = model.decoder(model.post_quant_conv(z)).clamp(-1, 1)
        psnr.append(-10 * torch.log10(((x - y) / 2).square().flatten(1).mean(1).clamp_min(1e-8)))
        used[codes] = True
    return torch.cat(psnr).mean().item(), used.float().mean().item()


@app.command()
def train(minutes: float = 45, lr: float = 8e-4, batch: int = 8) -> None:
    """Train on `batch` crops of 128 px from images of 256 px.

    Every fourth step trains on a quarter as many whole images.
    """
    pictures, rng, rivals = Pictures(), np.random.default_rng(), Rivals()
    model, critic, perceptual = rivals.vqgan, rivals.critic, vae.Perceptual()
    loop = Loop(
        CACHE,
        rivals,
        minutes=minutes,
        lr=lr,
        weight_decay=1e-4,
        fall=0.5,
        scale=lambda name: 0.5 if name.startswith("critic") else 1.0,
    )
    held, last = pictures.held_out(SIDE, limit=48), model.decoder.conv_out.weight
    used_K, since = torch.zeros(CODES), 0
    if loop.index == 0:  # the codes beyond the shipped ones are copies: move them
        first_K = torch.arange(CODES) < rivals.own
        revive(model, pictures.batch(rng, 12, SIDE) * 2 - 1, first_K)
    for done in loop:
        if since == 100 and done < 0.8:
            revive(model, pictures.batch(rng, 12, SIDE) * 2 - 1, used_K)
            used_K, since = torch.zeros(CODES), 0
        since += 1
        whole = loop.index % 4 == 3
        x = pictures.batch(rng, batch // 4 if whole else batch, SIDE, None if whole else SIDE // 2)
        x = (x * 2 - 1).contiguous(memory_format=torch.channels_last)
        with common.autocast():
            z = model.quant_conv(model.encoder(x))
        code_z, commit, codes = quantize(model, z.float())
        used_K += torch.bincount(codes, minlength=CODES)
        with common.autocast():
            y = model.decoder(model.post_quant_conv(code_z)).float()
        plain = (y - x).abs().mean() + (y - x).square().mean() + 0.15 * perceptual(y, x)
        loss, parts = plain + commit, {"plain": plain, "commit": commit}
        if done > 0.3:
            parts["critic"] = critics.telling([critic(x)], [critic(y.detach())])
            loss = loss + parts["critic"]
        if done > 1 / 3:
            critic.requires_grad_(False)
            fool = critics.fooling([critic(y)])
            critic.requires_grad_(True)
            (g_plain,) = torch.autograd.grad(plain, last, retain_graph=True)
            (g_fool,) = torch.autograd.grad(fool, last, retain_graph=True)
            loss = loss + 0.1 * fool * (g_plain.norm() / (g_fool.norm() + 1e-6)).clamp(max=10)
        loop.step(loss, **parts)
        if loop.index % 500 == 0:
            print(loop.index, *measure(loop.average.model.vqgan, held), flush=True)
            _sheet(loop.average.model.vqgan, held[:32])
    print("held out", *measure(load(), pictures.held_out(SIDE)))
    _sheet(load(), held[:32])


@torch.no_grad()
def _sheet(model, held_N3HW: Tensor) -> None:
    z, _, _ = quantize(model, model.quant_conv(model.encoder(held_N3HW * 2 - 1)))
    after = model.decoder(model.post_quant_conv(z)) / 2 + 0.5
    common.before_and_after(CACHE / "sheet.png", held_N3HW, after)


def load():
    """Return the trained VQGAN, float32."""
    state, model = averaged(CACHE), build()
    model.load_state_dict(
        {k.removeprefix("vqgan."): v for k, v in state.items() if k.startswith("vqgan.")}
    )
    return model.eval().requires_grad_(False)


@app.command()
def export(folder: Path = common.MINI / "vqgan") -> None:
    """Write the trained VQGAN to the folder, in fp16."""
    load().half().save_pretrained(folder)
    common.write_sums()


if __name__ == "__main__":
    app()
