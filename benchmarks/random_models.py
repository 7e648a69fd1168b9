"""Pipelines of the classes and sizes of Stable Diffusion's, CLIPs of open_clip's, weights random.

"SD 1.5", "SDXL", and "toy", a tiny SD 1.5. Prompts are embeddings of noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
UNETS = {
    "SD 1.5": {"sample_size": 64, "cross_attention_dim": 768},
    "SDXL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
}
TEXTS = {"SD 1.5": ((768, 12),), "SDXL": ((768, 12), (1280, 32))}  # width, layers
GUIDES = {"SD 1.5": "ViT-B-32", "SDXL": "convnext_base_w"}


def scheduler(geometry: str):
    """The one that a pipeline's checkpoint comes with; DDIM for PNDM, which adds an evaluation."""
    import diffusers

    if geometry == "SDXL":
        return diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **BETAS)
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **BETAS)


def pipeline(geometry: str, *, device: str = "cpu", side: int | None = None):
    """A pipeline, in half precision on CUDA, and the settings that it is called with: for one
    picture of `side` latents a side, its own if None. The toy has its own size, and draws two."""
    if geometry == "toy":
        return _toy()
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNETS[geometry])
        vae = diffusers.AutoencoderKL(**VAE)
    parts = {"unet": _filled(unet, device), "vae": _filled(vae, device)}
    kinds = CLIPTextModel, CLIPTextModelWithProjection
    for number, kind, (width, layers) in zip(("", "_2"), kinds, TEXTS[geometry], strict=False):
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=width,
        )
        parts[f"text_encoder{number}"] = kind(config).to(device, dtype)
        parts[f"tokenizer{number}"] = None
    parts["scheduler"] = scheduler(geometry)
    words = {"prompt_embeds": torch.randn(1, 77, unet.config.cross_attention_dim)}
    if geometry == "SDXL":
        words["pooled_prompt_embeds"] = torch.randn(1, 1280)
        pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    words |= {f"negative_{key}": torch.randn_like(value) for key, value in words.items()}
    settings = {key: value.to(device, dtype) for key, value in words.items()}
    size = pipe.vae_scale_factor * (side or unet.config.sample_size)
    return pipe, {**settings, "height": size, "width": size}


def guide(geometry: str, *, device: str = "cpu"):
    """The CLIP that guides a geometry by default, of random weights; the toy's is mini."""
    from clipguide.clip import Clip, load_clip

    if geometry == "toy":
        return load_clip("mini", device=device)
    import open_clip

    name = GUIDES[geometry]
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    return Clip(model, transform=transform, tokenizer=tokenizer, name=name, device=device)


def _toy():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        from tiny_pipelines import tiny
    finally:
        sys.path.pop(0)
    pipe, settings = tiny("SD 1.5")
    pipe.set_progress_bar_config(disable=True)
    return pipe, settings


def _filled(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """A model made on "meta", in place, with small normal weights and norms that pass on."""
    model = model.half() if device == "cuda" else model
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(name.endswith("weight"))
    return model
