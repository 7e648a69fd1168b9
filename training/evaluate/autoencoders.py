"""How well the generator's autoencoder and the VQGAN give back held-out drawings."""

from __future__ import annotations

from collections.abc import Iterator

from training.evaluate.ledger import Figure, Settings, figure


def vae(settings: Settings) -> Iterator[Figure]:
    """Mean PSNR of the shipped weights, computed in float32."""
    from diffusers import AutoencoderKL

    from training import vae
    from training.pictures import Pictures

    model = AutoencoderKL.from_pretrained(settings.folder("generator") / "vae").float().eval()
    image_B3HW = Pictures().held_out(model.config.sample_size, settings.limit)
    yield figure("generator: autoencoder's PSNR", vae.psnr(model, image_B3HW), n=len(image_B3HW),
                 weights=settings.weights("generator"), note="held-out drawings on white")


def vqgan(settings: Settings) -> Iterator[Figure]:
    """Mean PSNR, and the share of the codebook that the held-out drawings use."""
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
