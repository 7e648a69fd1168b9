"""The second half of the generator: from a map to the latents of an image.

    python -m training.decoder latents            # of the composed images, by the small autoencoder
    python -m training.decoder train --minutes 90 # resumes

It is a U-Net of diffusers with 10 M parameters, on latents of 16x16x8. The map is concatenated with
the latents (28 more input channels, each cell over 4x4). The cross-attention in the middle reads
the map and the tokens of the prompt, from the text encoder of the prior, which is no longer trained
then. The time embedding gets the style and the last token of the text. In training, noise of up to
0.3 is added to the map, so that errors of the prior do not matter. For classifier-free guidance,
one sample in ten has neither map nor text, one in ten has no text, and one in twenty has no map. It
uses v-prediction (Salimans & Ho 2022) on a schedule that ends in pure noise (Lin et al. 2024), with
t = sigmoid(1.1·n + 0.4) and n normal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor

from clipguide.mini.conditions import conditions
from training import common, prior, text, vae
from training.loop import Loop, averaged
from training.samples import CHANNELS, Samples
from training.styles import WORDS

CACHE = common.CACHE / "decoder"
TEXT = text.TOWERS["prior"][0]  # channels
app = typer.Typer(add_completion=False, help=__doc__)


def unet():
    """Return the network."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=vae.CHANNELS + CHANNELS,
        out_channels=vae.CHANNELS,
        layers_per_block=1,
        block_out_channels=(96, 192, 192),
        norm_num_groups=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=192,
        encoder_hid_dim=CHANNELS + TEXT,
        encoder_hid_dim_type="text_proj",
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=len(WORDS) + TEXT,
    )


def scheduler():
    """Return DDIM on a schedule that ends in pure noise."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def autoencoder() -> Path:
    """Return the folder of the autoencoder whose latents are drawn: the one of 128 pixels, or after
    `training.generator recover` the one that ships."""
    return vae.SMALL if (vae.SMALL / "checkpoint.pt").exists() else vae.LARGE


@app.command()
@torch.no_grad()
def latents(device: str = "cpu") -> None:
    """Encode the composed images of every seed (samples/SEED/latent.npy, float16), and measure
    each channel's mean and deviation."""
    large = autoencoder() == vae.LARGE
    encoder = vae.load(large).to(device, memory_format=torch.channels_last)
    samples = Samples()
    for folder, image in zip(samples.folders, samples.image):
        path = folder / "latent.npy"
        if path.exists():
            continue
        out = np.zeros((len(image), vae.CHANNELS, 16, 16), np.float16)
        for k in range(0, len(image), 32):
            x = torch.from_numpy(image[k : k + 32]).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = vae.resized(x.to(device), 2.0) if large else x.to(device)
            x = x.contiguous(memory_format=torch.channels_last)
            with common.autocast(device):
                z = encoder.encode(x)
            out[k : k + 32] = z.latent_dist.mean.float().cpu().numpy()
        np.save(path, out)
    if (CACHE / "moments.pt").exists():
        return
    first = torch.from_numpy(np.load(samples.folders[0] / "latent.npy")[:20_000]).float()
    moments = {"mean": first.mean((0, 2, 3)), "deviation": first.std((0, 2, 3))}
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(moments, CACHE / "moments.pt")
    print({k: [round(x, 3) for x in v.tolist()] for k, v in moments.items()})


def moments() -> tuple[Tensor, Tensor]:
    """Return (mean_1C11, deviation_1C11) of the latents."""
    found = torch.load(CACHE / "moments.pt", weights_only=True)
    return found["mean"].view(1, -1, 1, 1), found["deviation"].view(1, -1, 1, 1)


def predict(
    model,
    x: Tensor,
    t_B: Tensor,
    map_BC44: Tensor,
    said: tuple[Tensor, Tensor],
    label_B: Tensor,
    **more: object,
) -> Tensor:
    """Return v_B8hw for noisy latents, whole timesteps, maps, texts (hidden_BLD, mask_BL), styles
    and further arguments of the U-Net."""
    under = torch.nn.functional.interpolate(map_BC44, x.shape[-2:], mode="nearest")
    return model(
        torch.cat([x, under], 1).contiguous(memory_format=torch.channels_last),
        t_B,
        **conditions(map_BC44, *said, label_B, len(WORDS)),
        **more,
        return_dict=False,
    )[0]


@app.command()
def train(
    minutes: float = 90,
    lr: float = 8e-4,
    batch: int = 48,
    device: str = "cpu",
    compiled: bool = False,
    focus: float = 1.0,
    fall: float = 0.3,
    named: float = 0.8,
    middle: float = 0.4,
) -> None:
    """Train for so many minutes in all, of which the rate falls over the last `fall`; `focus`: see
    `Samples.chances`; `named`: how many captions name the style; `middle`: of t before the sigmoid;
    below 0 the samples have little noise, which at the end makes edges crisp."""
    latents(device)  # of images that were composed since
    samples = Samples()
    mean, deviation = moments()
    stored = [np.load(f / "latent.npy") for f in samples.folders]
    latent_N = (torch.from_numpy(np.concatenate(stored)).float() - mean) / deviation
    data = latent_N.half(), samples.map_NC44, samples.label_N
    latent_N, map_N, label_N = (a.to(device) for a in data)
    alpha_bar_T = scheduler().alphas_cumprod.to(device)
    torch.manual_seed(0)
    model = unet().to(device, memory_format=torch.channels_last)
    loop = Loop(CACHE, model, minutes=minutes, lr=lr, ema=0.999, fall=fall)
    torch.manual_seed(loop.index)
    network = torch.compile(model) if compiled else model
    chance_N = torch.from_numpy(samples.chances(focus)).to(device)
    encoder, tokens = prior.load().text_encoder.to(device), prior.Tokens()
    rng = np.random.default_rng(loop.index)
    for _ in loop:
        rows = torch.multinomial(chance_N, batch, replacement=True)
        left_out = rng.choice(4, batch, p=[0.75, 0.05, 0.1, 0.1])  # nothing, map, text, both
        captions = [
            samples.caption(i, rng, named) if less < 2 else ""
            for i, less in zip(rows.tolist(), left_out)
        ]
        x0, condition, label = latent_N[rows], map_N[rows], label_N[rows]
        x0, condition = x0.float(), condition.float()
        amount = 0.3 * torch.rand(batch, 1, 1, 1, device=device)
        condition = condition + amount * torch.randn_like(condition)
        condition[torch.from_numpy(left_out % 2 == 1)] = 0
        label = label * (torch.rand(batch, device=device) > 0.15)
        t_B = torch.sigmoid(1.1 * torch.randn(batch, device=device) + middle)
        t_B = (t_B * 1000).long().clamp(0, 999)
        a2 = alpha_bar_T[t_B].view(-1, 1, 1, 1)
        alpha, sigma, noise = a2.sqrt(), (1 - a2).sqrt(), torch.randn_like(x0)
        ids_BL, mask_BL = (x.to(device) for x in tokens(captions))
        with common.autocast(device):
            with torch.no_grad():
                said = encoder(ids_BL).last_hidden_state, mask_BL
            v = predict(network, alpha * x0 + sigma * noise, t_B, condition, said, label)
        error_B = (v.float() - (alpha * noise - sigma * x0)).square().flatten(1).mean(1)
        loop.step(error_B.mean())


def load():
    """Return the trained U-Net with the averaged weights."""
    model = unet()
    model.load_state_dict(averaged(CACHE))
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


if __name__ == "__main__":
    app()
