"""CLIP, any of them, under one contract: `load_clip` makes a `Clip`."""

from .base import Clip, fingerprint, to_device, to_dtype
from .ensemble import Ensemble
from .load import load_clip
from .resize import clamp_with_gradient, resize

__all__ = [
    "Clip",
    "Ensemble",
    "clamp_with_gradient",
    "fingerprint",
    "load_clip",
    "resize",
    "to_device",
    "to_dtype",
]
