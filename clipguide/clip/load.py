"""`load_clip`: a CLIP by its name, its folder or its file."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from .. import mini
from ..errors import ClipguideError, UsageError, reason
from ..prompts import shorten
from .base import Clip, to_device, to_dtype

MINI = {"mini": "guide", "mini-judge": "judge"}
CONFIG = "open_clip_config.json"
OPENAI_IDS = 49408  # of the tokenizer that open_clip takes by default


def load_clip(name: str = "mini", *, device: str = "cpu", dtype: str = "float32") -> Clip:
    """A CLIP by name, on a device.

    `name` is "mini" (the embedded guide), "mini-judge", a folder with an open_clip_config.json and
    safetensors, an open_clip model and tag such as "ViT-B-32/laion2b_s34b_b79k", or "hf-hub:" and
    the name of an open_clip model on the hub; these open_clip downloads where they are not cached.
    UsageError for a name that is none of these, ClipguideError
    for one that does not load.
    """
    to_dtype(dtype)
    to_device(device)
    if name in MINI:
        mini.check(MINI[name])
        source, tag = f"local-dir:{mini.path(MINI[name])}", None
    elif Path(name).is_dir():
        _check_folder(Path(name))
        source, tag = f"local-dir:{name}", None
    elif name.startswith("hf-hub:"):
        source, tag = name, None
    else:
        source, tag = _known_tag(name)
    import open_clip

    try:
        model, transform = open_clip.create_model_from_pretrained(source, tag)
        tokenizer = open_clip.get_tokenizer(source)
        return Clip(
            model, transform=transform, tokenizer=tokenizer, name=name, device=device, dtype=dtype
        )
    except ClipguideError:
        raise
    except Exception as error:  # open_clip, safetensors and json each raise their own
        raise ClipguideError(f"The CLIP {name} cannot be loaded: {reason(error)}.") from error


def _check_folder(folder: Path) -> None:
    """UsageError if open_clip would not load this folder, or only with the wrong tokenizer."""
    try:
        text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
    except FileNotFoundError:
        raise UsageError(f"{folder} is no CLIP folder: it has no {CONFIG}.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / CONFIG} is not the configuration of a CLIP.") from None
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} has no weights in a .safetensors file, which clipguide reads.")
    if not text.get("hf_tokenizer_name") and text.get("vocab_size", OPENAI_IDS) != OPENAI_IDS:
        raise UsageError(
            f"{folder / CONFIG} names no tokenizer, so open_clip would take its own of "
            f"{OPENAI_IDS} ids: set text_cfg.hf_tokenizer_name."
        )


def _known_tag(name: str) -> tuple[str, str]:
    """The open_clip model and tag of "model/tag". UsageError if open_clip has no such pair."""
    import open_clip

    known = {f"{model}/{tag}" for model, tag in open_clip.list_pretrained()}
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *MINI], n=3)
        advice = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else (f"Give {' or '.join(MINI)}, a folder, or an open_clip model and tag.")
        )
        raise UsageError(f"There is no CLIP {shorten(name)!r}. {advice}")
    model, tag = name.split("/", 1)
    return model, tag
