"""Load weights from a file: safetensors, or a pickle if the user trusts it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import ClipguideError, UsageError
from ..prompts import shorten

PICKLES = (".pt", ".pth", ".ckpt", ".bin")  # suffixes of files of torch.save


def check_trust(path: str | os.PathLike, *, trust_pickle: bool) -> None:
    """Raise UsageError for a file that is neither safetensors, by its name, nor a pickle, by its
    content, and for a pickle that is not trusted."""
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
    """Return whether a file is a zip, as torch.save writes it, or a bare pickle. The first bytes
    decide."""
    with path.open("rb") as stream:
        head = stream.read(4)
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def load_weights(path: str | os.PathLike, *, trust_pickle: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors file, or of a pickled state dict (or a dict with one
    under "state_dict"). A pickle is read with `weights_only`, and only if `trust_pickle` is on.

    Raises:
        UsageError: there is no such file, or it needs trust.
        ClipguideError: it cannot be read.
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
    except Exception as error:  # safetensors, pickle and zipfile raise different errors
        reason = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise ClipguideError(f"The weights {path} cannot be read: {reason}.") from error
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights)
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise ClipguideError(f"{path} holds no state dict.")
    return weights
