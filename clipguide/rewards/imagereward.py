"""The reward imagereward: a folder with ImageReward.pt and med_config.json, or its name on the hub.
"""

from __future__ import annotations

from pathlib import Path

from ..objectives import ImageReward
from ..objectives.image_reward import TOKENIZER
from .pictures import plain
from .registry import Scorer, Settings

FILES = ("ImageReward.pt", "med_config.json")


def imagereward(settings: Settings) -> Scorer:
    """Load `imagereward[=FOLDER]`. `model` is the folder or the name of the tokenizer."""
    folder = Path(settings.where)
    if folder.is_dir():
        path, config = (folder / name for name in FILES)
        safe = path.with_suffix(".safetensors")
        path = safe if safe.exists() else path
    else:
        from huggingface_hub import hf_hub_download

        path, config = (hf_hub_download(settings.where, name) for name in FILES)
    first = ImageReward(
        path,
        "an image",
        config=config,
        tokenizer=settings.model or TOKENIZER,
        device=settings.device,
        trust_pickle=settings.trust_pickle,
    )
    return lambda prompts: first.towards(plain(prompts, "ImageReward"))
