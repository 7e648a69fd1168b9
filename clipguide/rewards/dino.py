"""An image prompt by the features of DINO: how similar an image is to another.

Shapes: B images, 3 channels, H rows, W columns, D the width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from ..clip import resize
from ..errors import ClipguideError, UsageError
from ..hub import without_bars
from ..images import load
from ..objectives import Objective
from .registry import Scorer, Settings

MODEL = "facebook/dinov2-base"
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # the numbers of PIL, which the processor uses


class DINO(Objective):
    """Minus the cosine similarity of an image and `reference` by DINO.

    It compares the class tokens (DINOv2, Oquab et al. 2024; as a measure of the similarity of
    subjects, Ruiz et al. 2023, DreamBooth, section 4.1).

    Args:
        model: an image model of transformers whose pooler_output is its normalised class token.
        processor: its image processor, which resizes, crops the centre and normalises.
        reference: the image to compare with.
    """

    def __init__(
        self, model: torch.nn.Module, processor: object, reference: Image.Image
    ) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self._resize, self._crop = _sizes(processor)
        with torch.no_grad():
            self.reference_D = self._embed(self._prepared([reference]))[0]

    def __call__(self, image_B3HW, generators=None):
        return -(self._embed(self._prepare(image_B3HW)) @ self.reference_D)

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return cosine_B of RGB images, through the processor itself."""
        return self._embed(self._prepared(pictures)) @ self.reference_D

    def _embed(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Return unit_BD of normalised images."""
        return F.normalize(self.model(pixel_values=pixels_B3HW).pooler_output.float(), dim=-1)

    def _prepared(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        parts = [self.processor(images=p, return_tensors="pt").pixel_values for p in pictures]
        return torch.cat(parts).to(next(self.model.parameters()))

    def _prepare(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return tensors prepared like the processor does, differentiably."""
        like = next(self.model.parameters())
        config, side = self._resize
        image_B3HW = resize(image_B3HW.to(like), config, side)
        if self._crop:
            edge = (side - self._crop) // 2
            image_B3HW = image_B3HW[..., edge : edge + self._crop, edge : edge + self._crop]
        mean_3, std_3 = (
            image_B3HW.new_tensor(values)[:, None, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (image_B3HW - mean_3) / std_3


def _sizes(processor: object) -> tuple[tuple[dict, int], int]:
    """Return how images are resized, and the side of the crop after it, 0 for none. Raise
    ClipguideError for a processor that does something else."""
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    mode = RESAMPLING.get(int(processor.resample))
    if "shortest_edge" in size:
        side, how = size["shortest_edge"], "shortest"
    else:
        side, how = size.get("height"), "squash"
        mode = mode if side and side == size.get("width") else None
    cropped = crop.get("height", 0) if getattr(processor, "do_center_crop", False) else 0
    square = cropped == (crop.get("width", 0) if cropped else 0) and (cropped or how == "squash")
    steps = processor.do_resize and processor.do_rescale and processor.do_normalize
    if not (mode and steps and square and cropped <= side):
        raise ClipguideError(
            "This image processor does something else than to resize, crop to a square and "
            "normalise: take a DINOv2 of transformers, as facebook/dinov2-base."
        )
    return ({"resize_mode": how, "interpolation": mode}, int(side)), int(cropped)


def dino(settings: Settings) -> Scorer:
    """Load `dino=IMAGE[#MODEL]`. The prompts are ignored."""
    import transformers

    reference = load(settings.where)
    name = settings.model or MODEL
    with without_bars():
        model = transformers.AutoModel.from_pretrained(name, dtype=getattr(torch, settings.dtype))
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    if not hasattr(model.config, "patch_size"):
        raise UsageError(f"{name} is no image model of patches: take facebook/dinov2-base.")
    objective = DINO(model.to(settings.device), processor, reference)
    return lambda prompts: objective
