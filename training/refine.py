"""Fine-tune the decoder of the large autoencoder on latents as the generator draws them.

    python -m training.refine draw                 # latents and their images
    python -m training.refine train --minutes 60   # processor minutes in all; resumes
    python -m training.refine take                 # it becomes the large autoencoder's decoder

The U-Net's latents have errors, and the decoder of `training.vae` draws these as blotches and soft
edges. Here it learns from three kinds of latents. The encoder does not change, so the latents keep
their meaning, and no other model has to be trained again.

- near: noise is added to the latents of a drawing, and the U-Net removes it (SDEdit, Meng et al.
  2022). The target is the drawing.
- free: the generator draws from a caption. There is no drawing to compare with, so only the colours
  and the deep features stay as the earlier decoder draws them.
- exact: the latents of a drawing.

Two discriminators compare all outputs with drawings: one on patches, one on Lite0's features.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from training import common, critics, decoder, generator, pack, vae
from training.loop import Loop, averaged
from training.samples import Maker, Maps
from training.styles import styled

CACHE = vae.CACHE / "refined"
STEPS = 15
TURNS = ("near", "free", "near", "free", "exact")  # what one step after the other trains on
NEAR, FREE = 1, 2  # kinds of rows that `draw` writes; 0 where it was stopped
WIDTHS = (16, 24, 40, 80, 112)  # of the features that vae.Perceptual returns
ALONE = 300  # steps in which the discriminators learn and the decoder does not learn from them
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
@torch.no_grad()
def draw(near: int = 4800, free: int = 2400, batch: int = 48) -> None:
    """Draw the latents, and write them with their images: `image.npy`, uint8 N x 256 x 256 x 3;
    `exact.npy` and `latent.npy`, float16 N x 8 x 16 x 16; `kind.npy`, NEAR or FREE."""
    count = near + free
    CACHE.mkdir(parents=True, exist_ok=True)

    def opened(name: str, kind: type, *shape: int) -> np.ndarray:
        return np.lib.format.open_memmap(CACHE / f"{name}.npy", "w+", kind, (count, *shape))

    image, kind = opened("image", np.uint8, 256, 256, 3), opened("kind", np.uint8)
    exact, latent = (opened(name, np.float16, 8, 16, 16) for name in ("exact", "latent"))
    pipe, maker, maps = generator.pipeline(large=True), Maker(256), Maps()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    rng, seed = np.random.default_rng(11), torch.Generator().manual_seed(11)
    mean, deviation = decoder.moments()
    for k in range(0, count, batch):
        made = [maker.draw(rng) for _ in range(min(batch, count - k))]
        said = [styled(captions[0], label, rng) for _, captions, label, _ in made]
        rows = slice(k, k + len(made))
        with common.autocast():
            if k >= near:
                z = pipe(said, num_inference_steps=STEPS, generator=seed, output_type="latent")
                latent[rows] = z.images.float().numpy()
                y = (pipe.decode(z.images).float() * 127.5 + 127.5).round().clamp(0, 255)
                image[rows] = y.permute(0, 2, 3, 1).byte().numpy()
                kind[rows] = FREE
                continue
            image[rows] = np.stack([rgb for rgb, *_ in made])
            x = torch.from_numpy(image[rows]).permute(0, 3, 1, 2).float() / 255
            z0 = (pipe.vae.encode(x * 2 - 1).latent_dist.mean.float() - mean) / deviation
            exact[rows] = z0.numpy()
            text = pipe.encode_prompt([*said, *[""] * len(said)])
            label_B = torch.tensor([label for _, _, label, _ in made])
            pipe.scheduler.set_timesteps(STEPS)
            timesteps = pipe.scheduler.timesteps[int(rng.integers(5, STEPS - 1)) :]
            noise = torch.randn(z0.shape, generator=seed)
            z = pipe.scheduler.add_noise(z0, noise, timesteps[:1].expand(len(z0)))
            for t in timesteps:
                v = pipe._denoise(z, t, maps(x), text, label_B, 3.0).float()
                z = pipe.scheduler.step(v, t, z, return_dict=False)[0]
            latent[rows] = z.numpy()
            kind[rows] = NEAR
        if k // batch % 10 == 0:
            print(k, flush=True)


class Rivals(nn.Module):
    """The autoencoder, of which the decoder is trained, and its discriminators."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = vae.load(large=True).train()
        self.vae.decoder.requires_grad_(True)
        self.vae.post_quant_conv.requires_grad_(True)
        self.on_pixels, self.on_features = critics.patches(), critics.OnFeatures(WIDTHS)

    def logits(self, x_B3HW: Tensor, features: list[Tensor]) -> list[Tensor]:
        """Return the logits_B1hw of both discriminators, for images in [-1, 1] and their features.
        """
        return [self.on_pixels(x_B3HW), *self.on_features(features)]


@app.command()
def train(minutes: float = 60, lr: float = 4e-4, batch: int = 4, strength: float = 2.0) -> None:
    """Train. `strength`: the norm of the adversarial gradient at the decoder's output, in multiples
    of the norm of the other losses' gradient. Esser et al. 2021, section 3.1, take these norms at
    the decoder's last layer instead."""
    rivals, perceptual, rng = Rivals(), vae.Perceptual(), np.random.default_rng()
    loop = Loop(CACHE, rivals, minutes=minutes, lr=lr, betas=(0.5, 0.99), weight_decay=1e-4,
                fall=0.5)  # fmt: skip
    image, exact, latent, kind = (
        np.load(CACHE / f"{n}.npy", mmap_mode="r") for n in ("image", "exact", "latent", "kind")
    )
    near, free = (np.flatnonzero(kind == which) for which in (NEAR, FREE))
    mean, deviation = decoder.moments()

    def seen(rows: np.ndarray) -> Tensor:
        x = torch.from_numpy(image[np.sort(rows)]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x.contiguous(memory_format=torch.channels_last)

    ratio: dict[str, float] = {}  # of the norms of two gradients, for each kind of latents
    for _ in loop:
        turn = TURNS[loop.index % len(TURNS)]
        rows = rng.choice(free if turn == "free" else near, batch, replace=False)
        z = torch.from_numpy((exact if turn == "exact" else latent)[np.sort(rows)]).float()
        x = seen(rows)
        real = seen(rng.choice(near, batch)) if turn == "free" else x
        with common.autocast():
            y = rivals.vae.decode(z * deviation + mean).sample.float()
            f_y = perceptual.features(y)
            with torch.no_grad():
                f_x = perceptual.features(x)
                f_real = f_x if real is x else perceptual.features(real)
        f_x, f_y, f_real = ([f.float() for f in some] for some in (f_x, f_y, f_real))
        if turn == "free":
            coarse = (F.avg_pool2d(y, 8) - F.avg_pool2d(x, 8)).abs().mean()
            plain = coarse + 0.2 * vae.distance(f_x[2:], f_y[2:])
        else:
            plain = (y - x).abs().mean() + (y - x).square().mean() + 0.4 * vae.distance(f_x, f_y)
        with common.autocast():
            told_real = rivals.logits(real, f_real)
            told_drawn = rivals.logits(y.detach(), [f.detach() for f in f_y])
        parts = {turn: plain, "critic": critics.telling(told_real, told_drawn)}
        loss = plain + parts["critic"]
        if loop.index > ALONE:
            for critic in (rivals.on_pixels, rivals.on_features):
                critic.requires_grad_(False)
            with common.autocast():
                fool = critics.fooling(rivals.logits(y, f_y))
            for critic in (rivals.on_pixels, rivals.on_features):
                critic.requires_grad_(True)
            if rng.random() < 0.1 or turn not in ratio:  # as long as half a step
                (g_plain,) = torch.autograd.grad(plain, y, retain_graph=True)
                (g_fool,) = torch.autograd.grad(fool, y, retain_graph=True)
                found = (g_plain.norm() / (g_fool.norm() + 1e-6)).item()
                ratio[turn] = 0.8 * ratio.get(turn, found) + 0.2 * found
            loss, parts["fool"] = loss + strength * ratio[turn] * fool, fool
        loop.step(loss, **parts)
        if loop.index % 300 == 0:
            shown = np.concatenate([near[:8], free[:24]])
            z = torch.from_numpy(latent[shown]).float() * deviation + mean
            sheet(loop.average.model.vae, z, image[shown])


@app.command()
def take() -> None:
    """Make the trained decoder that of the large autoencoder, which `training.generator export`
    writes."""
    state = {k: v for k, v in averaged(CACHE).items() if k.startswith("vae.")}
    pack.keep(vae.LARGE, state)


@torch.no_grad()
def sheet(model, z_N8hw: Tensor, image_NHW3: np.ndarray) -> None:
    """Save `sheet.png`: drawings (or what the earlier decoder drew) above the decoder's output."""
    y = torch.cat([model.decode(part).sample for part in z_N8hw.split(8)])
    x = torch.from_numpy(image_NHW3).permute(0, 3, 1, 2).float() / 255
    common.before_and_after(CACHE / "sheet.png", x, y / 2 + 0.5)


if __name__ == "__main__":
    app()
