"""Tiny decoders: an AutoencoderTiny for the latents of a family, given, in a folder, or on the hub.

Those on the hub are TAESD and its siblings (Bohan 2023, MIT), about 10 MB each. Each is distilled
from one VAE, so the choice depends on the family and on what distinguishes this VAE from others.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import ClipguideError, UsageError, reason
from ..hub import within_reach

HUB = "hub"  # as `tiny`: the family's from the hub, downloaded if need be
# Of pipelines whose names begin so, the first that fits: the model, its VAE's scaling factors.
NAMES = (
    ("StableDiffusionXL", "madebyollin/taesdxl", (0.13025,)),
    ("StableDiffusion3", "madebyollin/taesd3", (1.5305,)),
    ("StableDiffusionUpscale", None, ()),
    ("StableDiffusion", "madebyollin/taesd", (0.18215,)),
    ("LatentConsistency", "madebyollin/taesd", (0.18215,)),
    ("AnimateDiff", "madebyollin/taesd", (0.18215,)),
    ("Flux2", None, ()),
    ("Flux", "madebyollin/taef1", (0.3611,)),
    ("Chroma", "madebyollin/taef1", (0.3611,)),
    ("ZImage", "madebyollin/taef1", (0.3611,)),
    ("Lumina2", "madebyollin/taef1", (0.3611,)),
    ("HiDream", "madebyollin/taef1", (0.3611,)),
)
WIDTHS = [128, 256, 512, 512]  # of the VAEs that they were distilled from


def load_tiny(folder: str | Path) -> nn.Module:
    """Load an AutoencoderTiny. Raise UsageError if `folder` has none, ClipguideError if it is
    damaged."""
    from diffusers import AutoencoderTiny

    if not (Path(folder) / "config.json").is_file():
        raise UsageError(f"{folder} is no folder of a tiny decoder: it has no config.json.")
    try:
        return AutoencoderTiny.from_pretrained(folder, use_safetensors=True).eval()
    except Exception as error:  # diffusers, safetensors and json each raise their own
        why = reason(error)
        raise ClipguideError(f"The tiny decoder {folder} cannot be loaded: {why}.") from error


def name_on_hub(pipe: object) -> str | None:
    """Return the name on the hub of the tiny decoder for a pipeline's VAE, or None if there is none
    for this VAE."""
    config = getattr(getattr(pipe, "vae", None), "config", {})
    for begin, name, scales in NAMES:
        if any(base.__name__.startswith(begin) for base in type(pipe).__mro__):
            own = list(config.get("block_out_channels") or ()) == WIDTHS
            return name if own and config.get("scaling_factor") in scales else None
    return None


def from_hub(pipe: object, *, download: bool) -> nn.Module | None:
    """Load the tiny decoder of a pipeline by its name on the hub. Without `download`, return None
    unless it is in the cache.

    Raises:
        UsageError: with `download`, there is none for this pipeline.
        ClipguideError: with `download`, it cannot be downloaded.
    """
    from diffusers import AutoencoderTiny

    name = name_on_hub(pipe)
    if name is None:
        if download:
            raise UsageError(
                f"The hub has no tiny decoder for the VAE of this {type(pipe).__name__}: name a "
                "folder of one, or take decoder='linear'."
            )
        return None
    try:
        with within_reach(download):
            return AutoencoderTiny.from_pretrained(name, local_files_only=not download).eval()
    except Exception as error:
        if not download:
            return None
        why = reason(error)
        raise ClipguideError(f"The tiny decoder {name} cannot be loaded: {why}.") from error


def found(pipe: object, tiny: nn.Module | str | Path | None, *, needed: bool) -> nn.Module | None:
    """Return the tiny decoder of the argument `tiny`: a model, a folder, or HUB. If `tiny` is None,
    return the one in the cache of the hub if it is `needed`, otherwise None.

    Raises:
        UsageError: one is needed, and none is on this machine.
    """
    if tiny == HUB:
        return from_hub(pipe, download=True)
    if isinstance(tiny, (str, Path)):
        return load_tiny(tiny)
    if tiny is None and needed:
        tiny = from_hub(pipe, download=False)
        if tiny is None:
            raise UsageError(
                "The tiny decoder needs `tiny` (--tiny): an AutoencoderTiny, a folder of one, or "
                "'hub'."
            )
    return tiny


def decode(tiny: nn.Module, latents_NChw: torch.Tensor) -> torch.Tensor:
    """Decode unscaled latents to image_N3HW, about in [0, 1]."""
    config = tiny.config
    latents_NChw = latents_NChw / config.get("scaling_factor", 1.0)
    latents_NChw = latents_NChw + (config.get("shift_factor") or 0.0)
    return tiny.decode(latents_NChw, return_dict=False)[0] / 2 + 0.5
