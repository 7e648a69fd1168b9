"""What differs between families of pipelines: the one table.

How the latents that a scheduler sees become an image, and which CLIP guides a family by default.

Shapes: B images, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import mini
from ..errors import ClipguideError, UsageError


@dataclass(frozen=True)
class Guide:
    """An open_clip model and tag, its download in megabytes and its licence."""

    name: str
    megabytes: int
    licence: str


@dataclass(frozen=True)
class Family:
    """A kind of pipeline. `to_latents` takes what the scheduler sees to what `pipe.vae` decodes."""

    to_latents: Callable[[torch.Tensor, nn.Module], torch.Tensor]


def _scaled(latents_BChw: torch.Tensor, vae: nn.Module) -> torch.Tensor:
    shift = vae.config.get("shift_factor") or 0.0
    return latents_BChw / vae.config.scaling_factor + shift


VIT_B_32 = Guide("ViT-B-32/laion2b_s34b_b79k", 605, "MIT")

FAMILIES = {"StableDiffusionPipeline": Family(to_latents=_scaled)}

# By pipeline and width of the text that conditions it: Stable Diffusion 1.x and 2.x.
GUIDES = {
    ("StableDiffusionPipeline", 768): VIT_B_32,
    ("StableDiffusionPipeline", 1024): VIT_B_32,
}


def family(pipe: object) -> Family:
    """The family of a pipeline. ClipguideError if it is not in the table."""
    for base in type(pipe).__mro__:
        if base.__name__ in FAMILIES:
            return FAMILIES[base.__name__]
    raise ClipguideError(f"{type(pipe).__name__} cannot be steered yet: {', '.join(FAMILIES)} can.")


def default_clip(pipe: object) -> str:
    """The CLIP that guides a pipeline where none is named: mini for the mini generator alone.

    UsageError if the table has none.
    """
    if is_mini(pipe.config.get("_name_or_path")):
        return "mini"
    width = (
        getattr(pipe.unet.config, "cross_attention_dim", None) if hasattr(pipe, "unet") else None
    )
    for base in type(pipe).__mro__:
        if guide := GUIDES.get((base.__name__, width)):
            return guide.name
    raise UsageError(
        f"Which CLIP should guide this {type(pipe).__name__}? Name one, for example "
        f"{VIT_B_32.name} ({VIT_B_32.megabytes} MB, {VIT_B_32.licence})."
    )


def is_mini(folder: str | None) -> bool:
    """Whether a folder is the embedded generator's."""
    return bool(folder) and Path(folder).resolve() == (mini.FOLDER / "generator").resolve()


class Decoder:
    """x0 to image, differentiable, in float32: of the pipeline's own VAE, or of a copy of it where
    that is in half precision. `freeze` and `thaw` bracket its use."""

    def __init__(self, pipe: object) -> None:
        self._to_latents = family(pipe).to_latents
        vae = pipe.vae
        self._vae = vae if vae.dtype.itemsize >= 4 else copy.deepcopy(vae).float()
        self._trainable: list[nn.Parameter] = []

    def freeze(self) -> None:
        """Spend nothing on gradients of the decoder's weights."""
        self._trainable = [p for p in self._vae.parameters() if p.requires_grad]
        for parameter in self._trainable:
            parameter.requires_grad_(False)

    def thaw(self) -> None:
        """Undo `freeze`."""
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._trainable = []

    def __call__(self, x0_BChw: torch.Tensor) -> torch.Tensor:
        """image_B3HW, in [0, 1] but for what the decoder overshoots."""
        latents_BChw = self._to_latents(x0_BChw.to(self._vae.dtype), self._vae)
        return self._vae.decode(latents_BChw, return_dict=False)[0] / 2 + 0.5
