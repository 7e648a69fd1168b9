"""The embedded generator as a whole: `training.vae`, `training.prior` and `training.decoder` in one
`clipguide.mini.pipeline.MiniPipeline`.

    python -m training.generator sheet --prompts FILE  # what it draws, a prompt a line
    python -m training.generator export                # clipguide/mini/generator, fp16
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import typer

from training import common, decoder, prior, text, vae

CACHE = common.CACHE / "generator"
app = typer.Typer(add_completion=False, help=__doc__)


def pipeline(large: bool | None = None):
    """The pipeline of the latest checkpoints, float32; at 256 px where that autoencoder is there."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from clipguide.mini.pipeline import MiniPipeline

    if large is None:
        large = (vae.LARGE / "checkpoint.pt").exists()
    autoencoder, first = vae.load(large), prior.load()
    mean, deviation = (x.flatten().tolist() for x in decoder.moments())
    autoencoder.register_to_config(
        scaling_factor=1.0,
        latents_mean=[round(x, 5) for x in mean],
        latents_std=[round(x, 5) for x in deviation],
        force_upcast=False,
    )
    return MiniPipeline(
        vae=autoencoder,
        text_encoder=first.text_encoder,
        tokenizer=text.load_tokenizer(),
        prior=first.transformer,
        prior_scheduler=FlowMatchEulerDiscreteScheduler(),
        unet=decoder.load().to(memory_format=torch.contiguous_format),
        scheduler=decoder.scheduler(),
    )


@app.command()
def export(folder: Path = common.MINI / "generator") -> None:
    """Write the pipeline's folder, weights in fp16; the text encoder's config says float32, so
    that its type is the others' when the folder is loaded."""
    pipe = pipeline()
    pipe.to(torch.float16)
    pipe.save_pretrained(folder)
    config = folder / "text_encoder/config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n"
    )
    common.write_sums()


@app.command()
def sheet(
    prompts: Path,
    out: Path = CACHE / "sheet.png",
    steps: int = 25,
    guidance: float = 3.0,
    paint: float = 2.0,
    style: str | None = None,
    first: int = 0,
    last: int = 1000,
    columns: int = 10,
) -> None:
    """One sample of each prompt of a file (one a line, # comments), seed 0, on one sheet."""
    from clipguide.images import contact_sheet

    lines = [x.strip() for x in prompts.read_text("utf-8").splitlines()]
    lines = [x for x in lines if x and not x.startswith("#")][first:last]
    pipe, images = pipeline(), []
    pipe.set_progress_bar_config(disable=True)
    for k in range(0, len(lines), 12):
        part = lines[k : k + 12]
        images += pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            map_guidance_scale=paint,
            style=style,
            generator=[torch.Generator().manual_seed(0) for _ in part],
        ).images
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, labels=lines, columns=columns).save(out)


if __name__ == "__main__":
    app()
