"""Rewards that are CLIPs, or heads on CLIPs: clip, siglip2, pickscore, hpsv2, aesthetic."""

from __future__ import annotations

import os

from ..clip import load_clip
from ..errors import UsageError
from ..objectives import Aesthetic, HPSv2, PickScore, Preference
from .registry import Scorer, Settings

HPS_FILE = "HPS_v2.1_compressed.pt"


def clip(settings: Settings) -> Scorer:
    """Return the cosine similarity of the whole image and the prompt, by any CLIP of `load_clip`.
    """
    loaded = load_clip(settings.where, **_how(settings))
    return lambda prompts: Preference(loaded, prompts, scale=1.0)


def pickscore(settings: Settings) -> Scorer:
    """Return PickScore (Kirstain et al. 2023, eq. 1)."""
    first = PickScore(settings.where, "an image", **_how(settings))
    return first.towards


def hpsv2(settings: Settings) -> Scorer:
    """Return HPSv2 (Wu et al. 2023), from an open_clip state dict. `model` is its architecture."""
    path = settings.where
    if not os.path.exists(path):
        path = _file(path, HPS_FILE)
    model = {"model": settings.model} if settings.model else {}
    return HPSv2(path, "an image", **model, **_how(settings)).towards


def aesthetic(settings: Settings) -> Scorer:
    """Return an aesthetic head on the embedding of a CLIP. `model` is that CLIP."""
    loaded = load_clip(settings.model or "ViT-L-14/openai", **_how(settings))
    head = Aesthetic(loaded, settings.where, trust_pickle=settings.trust_pickle)
    return lambda prompts: head


def _how(settings: Settings) -> dict[str, object]:
    return {
        "device": settings.device,
        "dtype": settings.dtype,
        "trust_pickle": settings.trust_pickle,
    }


def _file(repository: str, name: str) -> str:
    """Return a file of the hub. It is downloaded if it is not in the cache. Raise UsageError for a
    name that is neither a local file nor one of the hub."""
    if repository.count("/") != 1 or os.path.splitext(repository)[1]:
        raise UsageError(
            f"There are no weights {repository}: name a file, or a model of the hub as OWNER/NAME."
        )
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repository, name)
