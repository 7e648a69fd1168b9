"""Imports torchvision and timm, without torch's compiler; the package's first import, for open_clip
and timm would import them with it."""

from ..imports import vision

vision()
