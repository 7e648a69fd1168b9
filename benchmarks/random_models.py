"""Make pipelines with the classes and sizes of real ones, and CLIPs of open_clip, with random
weights.

There are "SD 1.5", "SDXL", "SD3.5-medium", SMALL (SD 1.5 with a small U-Net), and "toy", a tiny
one. `hollow` makes models with sizes and no values, also of FLUX and Qwen-Image. Prompts are random
embeddings.
"""

from __future__ import annotations

import inspect
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
WIDE = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
SMALL = "SD 1.5 with a small U-Net"
VAES = {
    "SD 1.5": ("AutoencoderKL", VAE),
    SMALL: ("AutoencoderKL", VAE),
    "SDXL": ("AutoencoderKL", {**VAE, "scaling_factor": 0.13025}),
    "SD3.5-medium": (
        "AutoencoderKL",
        {**VAE, **WIDE, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    ),
    "FLUX": ("AutoencoderKL", {**VAE, **WIDE, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "Qwen-Image": ("AutoencoderKLQwenImage", {}),
}
TRANSFORMERS = {
    "SD3.5-medium": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "FLUX": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
}
LATENTS = {  # as the scheduler has them, of one image of the model's own size
    "SD 1.5": (1, 4, 64, 64),
    "SDXL": (1, 4, 128, 128),
    "SD3.5-medium": (1, 16, 128, 128),
    "FLUX": (1, 4096, 64),
    "Qwen-Image": (1, 4096, 64),
}
UNETS = {
    "SD 1.5": {"sample_size": 64, "cross_attention_dim": 768},
    SMALL: {
        "sample_size": 64,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 64,
    },
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
GUIDES = {
    **dict.fromkeys(("SD 1.5", SMALL), "ViT-B-32"),
    **dict.fromkeys(("SDXL", "SD3.5-medium"), "convnext_base_w"),
}


def scheduler(geometry: str):
    """Return the scheduler of a pipeline's checkpoint. DDIM replaces PNDM, which adds an
    evaluation."""
    import diffusers

    if geometry == "SDXL":
        return diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **BETAS)
    if geometry in TRANSFORMERS:
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **BETAS)


def hollow(geometry: str):
    """Return a pipeline with the true sizes of the models, and without values, on "meta", for
    estimates. It has classifier-free guidance if the pipeline has it, and no text encoders."""
    import diffusers

    name, config = VAES[geometry]
    with torch.device("meta"):
        vae = getattr(diffusers, name)(**config)
        if geometry in UNETS:
            model = {"unet": diffusers.UNet2DConditionModel(**UNETS[geometry])}
        else:
            kind, options = TRANSFORMERS[geometry]
            model = {"transformer": getattr(diffusers, kind)(**options)}
    pipe = _assembled(geometry, vae=vae, **model)
    pipe._guidance_scale = 7.0
    return pipe


def _assembled(geometry: str, **parts):
    """Return the pipeline with these parts. A missing part is None."""
    import diffusers

    extra = {}
    if geometry.startswith("SD 1.5"):
        kind = diffusers.StableDiffusionPipeline
        extra = {"requires_safety_checker": False}
    elif geometry == "SDXL":
        kind, extra = diffusers.StableDiffusionXLPipeline, {"add_watermarker": False}
    else:
        names = {"SD3.5-medium": "StableDiffusion3", "FLUX": "Flux", "Qwen-Image": "QwenImage"}
        kind = getattr(diffusers, f"{names[geometry]}Pipeline")
    given = {"scheduler": scheduler(geometry), **parts, **extra}
    wanted = inspect.signature(kind.__init__).parameters.values()
    needed = [p.name for p in wanted if p.default is p.empty and p.name != "self"]
    return kind(**{**dict.fromkeys(needed), **given})


def pipeline(
    geometry: str,
    *,
    device: str = "cpu",
    side: int | None = None,
    batch: int = 1,
    dtype: torch.dtype | None = None,
):
    """Return a pipeline, on CUDA in half precision by default, and the arguments of its call: for
    `batch` images of `side` latents a side, by default its own. The toy has its own size, and draws
    two images."""
    if geometry.startswith("toy"):
        return _toy("SD3" if geometry == "toy flow" else "SD 1.5")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    usual = torch.float16 if device == "cuda" else torch.float32
    dtype = dtype or (torch.bfloat16 if geometry in TRANSFORMERS else usual)
    hollowed = hollow(geometry)
    name = "transformer" if geometry in TRANSFORMERS else "unet"
    parts = {key: filled(getattr(hollowed, key), device, dtype) for key in (name, "vae")}
    kinds = CLIPTextModel, CLIPTextModelWithProjection
    for number, kind, (width, layers) in zip(
        ("", "_2"), kinds, TEXTS.get(geometry, ()), strict=False
    ):
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=width,
        )
        with torch.device("meta"):
            encoder = kind(config)
        parts[f"text_encoder{number}"] = filled(encoder, device, dtype)
    model = parts[name]
    width = model.config.get("cross_attention_dim") or model.config.joint_attention_dim
    words = {"prompt_embeds": torch.randn(batch, 77, width)}
    if not geometry.startswith("SD 1.5"):
        pooled = model.config.get("pooled_projection_dim", 1280)
        words["pooled_prompt_embeds"] = torch.randn(batch, pooled)
    pipe = _assembled(geometry, **parts)
    pipe.set_progress_bar_config(disable=True)
    words |= {f"negative_{key}": torch.randn_like(value) for key, value in words.items()}
    settings = {key: value.to(device, dtype) for key, value in words.items()}
    size = pipe.vae_scale_factor * (side or model.config.sample_size)
    return pipe, {**settings, "height": size, "width": size}


def guide(geometry: str, *, device: str = "cpu", dtype: str = "float32"):
    """Return the default CLIP for a geometry, with random weights. That of the toy is mini."""
    from clipguide.clip import Clip, load_clip

    if geometry == "toy":
        return load_clip("mini", device=device, dtype=dtype)
    import open_clip

    name = GUIDES[geometry]
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    parts = {"transform": transform, "tokenizer": tokenizer, "name": name}
    return Clip(model, **parts, device=device, dtype=dtype)


def _toy(name: str):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        from tiny_pipelines import tiny
    finally:
        sys.path.pop(0)
    pipe, settings = tiny(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe, settings


def filled(model: torch.nn.Module, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """Fill a model on "meta" in place, with small normal weights, and norms that keep their input.
    """
    model = torch.nn.Module.to(model, dtype)  # diffusers' own would warn
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(name.endswith("weight"))
    return model
