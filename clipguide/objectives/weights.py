"""Weights from a file: safetensors as they are, a pickle only where the user trusts it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import ClipguideError, UsageError
from ..prompts import shorten

PICKLES = (".pt", ".pth", ".ckpt", ".bin")  # what torch.save's files are called


def check_trust(path: str | os.PathLike, *, trust_pickle: bool) -> None:
    """UsageError for a file that is neither safetensors, by its name, nor a pickle, by what is in
    it; and for a pickle that is not trusted."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return
    if path.suffix not in PICKLES and not _is_pickle(path):
        raise UsageError(f"{path} holds no weights: name a .safetensors file.")
    if not trust_pickle:
        raise UsageError(
            f"{path} is a pickle, not safetensors: give trust_pickle=True (--trust-pickle) if you "
            "trust where it is from."
        )


def _is_pickle(path: Path) -> bool:
    """Whether a file is a zip, as torch.save writes it, or a bare pickle: by its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(4)
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def load_weights(path: str | os.PathLike, *, trust_pickle: bool) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a pickled state dict (or a dict with one under
    "state_dict"), which is read with `weights_only` and only if `trust_pickle` is on.

    UsageError if there is no such file or it needs trust, ClipguideError if it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There are no weights {path}.")
    check_trust(path, trust_pickle=trust_pickle)
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
