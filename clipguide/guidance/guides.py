"""The table of the default guide for each family of pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import mini
from ..errors import UsageError
from .latents import FRAMES, NAMES, PIXELS, PLAIN


@dataclass(frozen=True)
class Guide:
    """An open_clip model and tag, its download in megabytes and its licence."""

    name: str
    megabytes: int
    licence: str


VIT_B_32 = Guide("ViT-B-32/laion2b_s34b_b79k", 605, "MIT")
# For generators of 1024 pixels. Its input is 256 pixels, and it was trained with stronger
# augmentation.
CONVNEXT = Guide("convnext_base_w/laion2b_s13b_b82k_augreg", 718, "MIT")

# By pipeline and width of the text embedding of a U-Net. The width distinguishes Stable Diffusion
# 1.x and
# 2.x from other models (mini has 16 to 512).
GUIDES = {
    **{
        (f"{name}Pipeline", width): VIT_B_32
        for names in (NAMES[PLAIN], NAMES[FRAMES])
        for name in names
        for width in (768, 1024)
        if name.startswith(("StableDiffusion", "LatentConsistency", "AnimateDiff"))
    },
    **{
        (f"{name}Pipeline", width): CONVNEXT
        for entry in set(NAMES) - {PIXELS}
        for name in NAMES[entry]
        for width in (None, 1280, 2048)  # no U-Net, SDXL's refiner, SDXL
    },
}


def default_clip(pipe: object, like: str | None = None) -> str:
    """Return the default CLIP of a pipeline. `like` names a class whose default it gets.

    Raises:
        UsageError: the table has no CLIP for it.
    """
    if is_mini(pipe.config.get("_name_or_path")):
        return "mini"
    unet = getattr(pipe, "unet", None)
    width = None if unet is None else unet.config.get("cross_attention_dim", 0)
    for name in [like] if like else [base.__name__ for base in type(pipe).__mro__]:
        if guide := GUIDES.get((name, width)):
            return guide.name
    raise UsageError(
        f"Which CLIP should guide this {type(pipe).__name__}? Name one, for example "
        f"{VIT_B_32.name} ({VIT_B_32.megabytes} MB, {VIT_B_32.licence})."
    )


def is_mini(folder: str | None) -> bool:
    """Return whether a folder is the embedded generator's."""
    return bool(folder) and Path(folder).resolve() == (mini.FOLDER / "generator").resolve()
