"""Import torchvision and timm without torch's compiler. The package imports this first, because
open_clip and timm would import the compiler with them."""

from ..imports import vision

vision()
