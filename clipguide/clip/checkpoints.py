"""Load checkpoints of open_clip's training: `epoch_5.pt`, with its optimizer, after the name of the
model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import ClipguideError, UsageError, reason
from .fingerprint import open_clip_architecture
from .parts import Parts, describe_open_clip, open_clip_config

PREFIXES = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile


def named(source: str) -> tuple[str, str] | None:
    """Return the open_clip model and the file in "ViT-B-32/path/epoch_5.pt", or None for another
    name."""
    model, _, file = source.partition("/")
    if not (model and os.path.isfile(file)):
        return None
    import open_clip

    return (model, file) if model in open_clip.list_models() else None


def from_checkpoint(model: str, file: str, *, name: str) -> Parts:
    """Return the parts of an open_clip model with the weights of a training checkpoint. The
    optimizer is not read.

    The file is read with `weights_only`.

    Raises:
        UsageError: the file is not a checkpoint.
        ClipguideError: its weights do not fit the model.
    """
    state = weights(Path(file))
    import open_clip

    tower, _, transform = open_clip.create_model_and_transforms(model, load_weights=False)
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise ClipguideError(
            f"The weights in {file} are not those of a {model}: {reason(error)}."
        ) from error
    tokenizer, config = open_clip.get_tokenizer(model), open_clip_config(model, tower)
    describe = describe_open_clip(config, tokenizer, None)
    architecture = open_clip_architecture(config["model_cfg"])
    return Parts(tower, transform, tokenizer, name, describe, architecture)


def weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint, by the names of the bare model. Raise UsageError if there
    are none."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        state = found["state_dict"]
    except Exception as error:  # torch, pickle and zipfile raise different errors
        raise UsageError(
            f"{file} is no checkpoint of open_clip's training, which has a state_dict."
        ) from error
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
