"""Weights from a file: safetensors as they are, a pickle only where the user trusts it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import ClipguideError, UsageError
from ..prompts import shorten


def load_weights(path: str | os.PathLike, *, trust_pickle: bool) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a pickled state dict (or a dict with one under
    "state_dict"), which is read with `weights_only` and only if `trust_pickle` is on.

    UsageError if there is no such file or it needs trust, ClipguideError if it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There are no weights {path}.")
    if path.suffix != ".safetensors" and not trust_pickle:
        raise UsageError(
            f"{path} is a pickle, not safetensors: give trust_pickle=True if you trust where it is "
            "from."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zipfile each raise their own
        reason = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise ClipguideError(f"The weights {path} cannot be read: {reason}.") from error
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights)
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise ClipguideError(f"{path} holds no state dict.")
    return weights
