"""Measure how well the generator's autoencoder and the VQGAN reconstruct held-out drawings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from training.evaluate.ledger import Figure, Settings, figure


def vae(settings: Settings) -> Iterator[Figure]:
    """Measure the mean PSNR of the shipped weights, in float32. With --before, also measure the
    feature distance between reconstructions and drawings, divided by that of an earlier
    autoencoder."""
    from diffusers import AutoencoderKL

    from training import vae
    from training.pictures import Pictures

    def load(folder: Path):
        return AutoencoderKL.from_pretrained(folder).float().eval()

    model = load(settings.folder("generator") / "vae")
    image_B3HW = Pictures().held_out(model.config.sample_size, settings.limit)
    weights = settings.weights("generator")
    yield figure("generator: autoencoder's PSNR", vae.psnr(model, image_B3HW), n=len(image_B3HW),
                 weights=weights, note=f"held-out drawings on white, {image_B3HW.shape[-1]} px")
    if settings.before:
        perceptual, old = vae.Perceptual(), load(settings.before)
        new, before = (far(m, image_B3HW, perceptual) for m in (model, old))
        yield figure("generator: autoencoder's feature distance, times the one before",
                     new / before, n=len(image_B3HW), weights=weights,
                     note=f"{new:.4f} / {before:.4f}, Lite0 at {image_B3HW.shape[-1]} px")


@torch.no_grad()
def far(model, image_B3HW: torch.Tensor, perceptual) -> float:
    """Return the mean feature distance between reconstructions, enlarged from the size of the
    model, and the images."""
    own, side, found = model.config.sample_size, image_B3HW.shape[-1], []
    for x_B3HW in (image_B3HW * 2 - 1).split(8):
        small = F.interpolate(x_B3HW, (own, own), mode="bilinear", antialias=True)
        back = model.decode(model.encode(small).latent_dist.mean).sample.clamp(-1, 1)
        back = F.interpolate(back, (side, side), mode="bilinear", antialias=True)
        found.append(perceptual(back, x_B3HW).item() * len(x_B3HW))
    return sum(found) / len(image_B3HW)


def vqgan(settings: Settings) -> Iterator[Figure]:
    """Measure the mean PSNR, and the share of the codebook that the held-out drawings use."""
    from diffusers import VQModel

    from training import vqgan
    from training.pictures import Pictures

    model = VQModel.from_pretrained(settings.folder("vqgan")).float().eval()
    image_B3HW = Pictures().held_out(model.config.sample_size, settings.limit)
    psnr, used = vqgan.measure(model, image_B3HW)
    weights = settings.weights("vqgan")
    yield figure("vqgan: PSNR", psnr, n=len(image_B3HW), weights=weights,
                 note="held-out drawings on white")
    yield figure("vqgan: codes used", used, n=len(image_B3HW), weights=weights,
                 note=f"of {vqgan.CODES}")
