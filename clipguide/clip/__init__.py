"""Load any CLIP under one contract. `load_clip` makes a `Clip`. `load_parts` loads the parts for
training and export."""

from . import vision
from .base import Clip, to_device, to_dtype
from .concepts import Concept, with_concept
from .ensemble import Ensemble
from .fingerprint import fingerprint
from .load import check_clip, load_clip, load_parts
from .names import lasting_name
from .parts import Parts
from .resize import clamp_with_gradient, resize, unit_range

__all__ = [
    "Clip",
    "Concept",
    "Ensemble",
    "Parts",
    "check_clip",
    "clamp_with_gradient",
    "fingerprint",
    "lasting_name",
    "load_clip",
    "load_parts",
    "resize",
    "to_device",
    "to_dtype",
    "unit_range",
    "with_concept",
]
