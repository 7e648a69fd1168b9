"""The mini generator: a text-conditioned latent U-Net at 128 px, a ``StableDiffusionPipeline``.

    python -m training.generator latents             # things, variants, captions, VAE latents
    python -m training.generator train --minutes 60  # processor minutes; resumes
    python -m training.generator export              # clipguide/mini/generator, fp16
    python -m training.generator sheet               # a contact sheet of samples

The VAE is `training/vae.py`'s; the text encoder is the guide's text tower under Hugging Face's
names, frozen. The U-Net predicts v (Salimans & Ho 2022) under a schedule rescaled to end at zero
signal (Lin et al. 2024), weighted by min-SNR-5 (Hang et al. 2023). The caption reaches every
block through the time embedding and the middle block through cross-attention.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor

from clipguide.finetune import Ema
from training import common, text, vae
from training.data.compose import TrainingSet

CACHE = common.CACHE / "generator"
THINGS = 75
app = typer.Typer(add_completion=False, help=__doc__)


# ---------------------------------------------------------------- what is drawn
WANTED = """fox cat dog rabbit horse cow pig mouse lion tiger bear panda penguin owl duck chicken
fish whale dolphin octopus turtle snake frog butterfly bee snail elephant monkey apple banana
strawberry cherry lemon pear watermelon grape tomato carrot mushroom pizza hamburger cake bread
flower rose sunflower tulip tree cactus star moon sun cloud rainbow snowman car bus train bicycle
airplane rocket ship house castle tent umbrella book key bell gift balloon crown guitar trumpet
violin camera clock hammer scissors pencil light bulb heart""".split()


def things(data: TrainingSet, count: int = THINGS) -> list[str]:
    """The concepts that are drawn: those in most families first, symbols and people left out."""
    families: dict[str, set] = {}
    for row in data.rows:
        if not row["symbol"] and row["category"] not in (
            "symbol",
            "people & body",
            "smileys & emotion",
            "flags",
        ):
            families.setdefault(row["concept"], set()).add(row["family"])
    wanted = [c for c in families if c in WANTED and len(families[c]) >= 3]
    rest = sorted(families, key=lambda c: (-len(families[c]), c))
    return list(dict.fromkeys([*wanted, *rest]))[:count]


@app.command()
@torch.no_grad()
def latents(variants: int = 6, phrasings: int = 4) -> None:
    """Encode every drawing of the things in `variants` versions, half of them recoloured."""
    data, autoencoder = TrainingSet(common.DATA), vae.load()
    rng, names = np.random.default_rng(0), things(data)
    chosen = [r for r in data.rows if r["concept"] in set(names)]
    pictures, captions = [], []
    for row in chosen:
        for k in range(variants):
            recolour = k % 2 == 1
            sample = data.single(row["index"], rng, recolour=recolour)
            more = [
                data.caption(row["index"], rng, sample.colour, recolour and bool(sample.colour))
                for _ in range(phrasings - 1)
            ]
            pictures.append(sample.rgb)
            captions.append([sample.caption, *more])
    out = []
    for k in range(0, len(pictures), 32):
        x_B3HW = (
            torch.from_numpy(np.stack(pictures[k : k + 32])).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        out.append(autoencoder.encode(x_B3HW).latent_dist.mean.half())
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"latents": torch.cat(out), "captions": captions, "things": names}, CACHE / "latents.pt"
    )
    print(f"{len(names)} things, {len(chosen)} drawings, {len(pictures)} latents")


# -------------------------------------------------------------- the networks
def unet():
    """12 M parameters at 16x16x4 latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(96, 192, 224),
        norm_num_groups=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=text.TOWERS["guide"][0],
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def scheduler():
    """DDIM on a schedule that ends in pure noise."""
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


def text_encoder():
    """The guide's text tower as transformers' ``CLIPTextModel``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width, heads, layers, _ = text.TOWERS["guide"]
    cfg = text.text_config("guide")
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=cfg["vocab_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="gelu",
            max_position_embeddings=text.CONTEXT,
            projection_dim=text.DIM,
            dtype="float32",
            bos_token_id=cfg["eos_id"] - 1,
            eos_token_id=cfg["eos_id"],
            pad_token_id=cfg["pad_id"],
        )
    )
    theirs = torch.load(text.CACHE / "guide.pt", weights_only=True)
    mine = {
        "embeddings.token_embedding.weight": theirs["token_embedding.weight"],
        "embeddings.position_embedding.weight": theirs["positional_embedding"],
        "final_layer_norm.weight": theirs["ln_final.weight"],
        "final_layer_norm.bias": theirs["ln_final.bias"],
    }
    for i in range(layers):
        ours, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            qkv = theirs[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", qkv):
                mine[f"{ours}.self_attn.{name}_proj.{kind}"] = part
            for a, b in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                mine[f"{ours}.{a}.{kind}"] = theirs[f"{block}.{b}.{kind}"]
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    model.load_state_dict({prefix + k: v for k, v in mine.items()}, strict=True)
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------ training
class Captions:
    """Hidden states of captions, each encoded once: list[str] -> (B, 32, width)."""

    def __init__(self) -> None:
        self.encoder, self.tokenizer, self.known = text_encoder(), text.load_tokenizer(), {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        new = sorted({c for c in captions if c not in self.known})
        for k in range(0, len(new), 64):
            ids = self.tokenizer(
                new[k : k + 64],
                padding="max_length",
                max_length=text.CONTEXT,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for caption, hidden in zip(new[k : k + 64], self.encoder(ids).last_hidden_state):
                self.known[caption] = hidden
        return torch.stack([self.known[c] for c in captions])


@app.command()
def train(minutes: float = 60, lr: float = 8e-4, batch: int = 48, drop: float = 0.12) -> None:
    """Train for so many minutes of processor time more; the rate falls within this call."""
    data, encode, rng = (
        torch.load(CACHE / "latents.pt", weights_only=True),
        Captions(),
        np.random.default_rng(),
    )
    latent_N4HW = data["latents"].float() / data["latents"].float().std()
    alpha_bar_T = scheduler().alphas_cumprod
    model = unet().to(memory_format=torch.channels_last)
    average = Ema(model, 0.999)
    path, log = CACHE / "checkpoint.pt", common.Log(CACHE / "log.csv")
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state)
        average.model.load_state_dict(state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    start, step, losses = time.process_time(), 0, []
    while (done := (time.process_time() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 200) * max(0.02, min(1, 2 * (1 - done)))
        rows = rng.choice(len(latent_N4HW), batch)
        words = [rng.choice(data["captions"][i]) if rng.random() > drop else "" for i in rows]
        x0 = latent_N4HW[rows]
        t = torch.from_numpy(rng.integers(0, 1000, batch))
        a2 = alpha_bar_T[t].view(-1, 1, 1, 1)
        alpha, sigma, noise = a2.sqrt(), (1 - a2).sqrt(), torch.randn_like(x0)
        noisy = (alpha * x0 + sigma * noise).to(memory_format=torch.channels_last)
        with common.autocast():
            v = model(noisy, t, encode(words)).sample.float()
        snr = a2.flatten() / (1 - a2.flatten())
        error_B = (v - (alpha * noise - sigma * x0)).square().flatten(1).mean(1)
        loss = (error_B * snr.clamp(max=5) / (snr + 1) + 0.2 * error_B).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        losses.append(error_B.mean().item())
        step += 1
        if step % 100 == 0:
            log(
                step=step,
                minutes=(time.process_time() - start) / 60,
                error=float(np.mean(losses[-100:])),
                rate=optimizer.param_groups[0]["lr"],
            )
        if step % 500 == 0:
            torch.save(average.model.state_dict(), path)
    torch.save(average.model.state_dict(), path)
    log.plot()
    sheet()


def pipeline():
    """The pipeline of the latest checkpoint, float32."""
    from diffusers import StableDiffusionPipeline

    model, autoencoder = unet(), vae.load()
    model.load_state_dict(torch.load(CACHE / "checkpoint.pt", weights_only=True))
    std = torch.load(CACHE / "latents.pt", weights_only=True)["latents"].float().std()
    autoencoder.register_to_config(scaling_factor=round(1 / std.item(), 5))
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder(),
        tokenizer=text.load_tokenizer(),
        unet=model,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
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
def sheet(out: Path = CACHE / "sheet.png", n: int = 48, steps: int = 25, cfg: float = 3.0) -> None:
    """One sample of each of n things, seed 0, on one sheet."""
    from clipguide.images import contact_sheet

    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    names = torch.load(CACHE / "latents.pt", weights_only=True)["things"]
    names = [names[i * len(names) // n] for i in range(n)]
    pictures = []
    for k in range(0, n, 16):
        pictures += pipe(
            [f"a {c}" for c in names[k : k + 16]],
            num_inference_steps=steps,
            guidance_scale=cfg,
            height=128,
            width=128,
            generator=torch.Generator().manual_seed(0),
        ).images
    contact_sheet(pictures, labels=names, columns=8).save(out)


if __name__ == "__main__":
    app()
