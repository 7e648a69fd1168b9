"""A CLIP from a folder of Hugging Face transformers, under the contract of `Clip`.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns, D the width of the embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..errors import ClipguideError, UsageError, reason
from .base import Clip, to_device, to_dtype

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, which the processor's are


def load_hf_clip(
    path: str | os.PathLike, *, device: str = "cpu", dtype: str = "float32", trust: bool = False
) -> Clip:
    """A Clip of a local folder that `CLIPModel.save_pretrained` wrote, with its processor's files.

    Pictures go through the folder's own image processor; tensors are resized in float32 as it
    resizes. Weights are read from safetensors, from a pickle only with `trust`. UsageError for a
    folder that is none of a CLIP, ClipguideError for one that does not load.
    """
    to_dtype(dtype)
    to_device(device)
    folder = Path(path)
    _check_folder(folder, trust=trust)
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    try:
        with _no_progress_bar():
            model = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=None if trust else True
            )
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers, safetensors and json each raise their own
        raise ClipguideError(f"The CLIP {folder} cannot be loaded: {reason(error)}.") from error
    return wrap_hf_clip(model, processor, tokenizer, name=str(folder), device=device, dtype=dtype)


def wrap_hf_clip(
    model: object,
    processor: object,
    tokenizer: object,
    *,
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
) -> Clip:
    """A Clip of a transformers CLIPModel, its image processor and its tokenizer, already loaded.

    UsageError if the processor does more than to resize, crop to a square and normalise.
    """
    tower = _Towers(model, _preprocess(processor, name))

    def transform(picture: Image.Image) -> torch.Tensor:
        return processor(images=picture, return_tensors="pt")["pixel_values"][0]

    def tokenize(texts: list[str], context_length: int = tower.context_length) -> torch.Tensor:
        return tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=context_length,
            return_tensors="pt",
        ).input_ids

    return Clip(
        tower, transform=transform, tokenizer=tokenize, name=name, device=device, dtype=dtype
    )


class _Towers(nn.Module):
    """A transformers CLIPModel with the names of an open_clip model."""

    def __init__(self, model: nn.Module, preprocess: dict) -> None:
        super().__init__()
        self.model, self.visual = model, nn.Module()
        self.visual.preprocess_cfg = preprocess
        self.context_length = model.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> torch.Tensor:
        return self.model.logit_scale

    def encode_image(self, pixel_B3HW: torch.Tensor) -> torch.Tensor:
        """Embedding_BD, not of unit length."""
        pooled_BD = self.model.vision_model(pixel_values=pixel_B3HW).pooler_output
        return self.model.visual_projection(pooled_BD)

    def encode_text(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """The same of texts. The padding needs no mask: attention is causal, and the embedding is
        the end token's."""
        pooled_BD = self.model.text_model(input_ids=tokens_BL).pooler_output
        return self.model.text_projection(pooled_BD)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws one for each model that it loads."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _check_folder(folder: Path, *, trust: bool) -> None:
    """UsageError if transformers would not load this folder, or not from safetensors."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except FileNotFoundError:
        raise UsageError(f"{folder} is no CLIP of transformers: it has no config.json.") from None
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{folder / 'config.json'} is not the configuration of a model.") from None
    if kind != "clip":
        raise UsageError(f"{folder} holds a model of type {kind!r}, not a CLIP.")
    if not any(folder.glob("*.safetensors")) and not trust:
        raise UsageError(
            f"{folder} has no weights in a .safetensors file: give trust=True to read a pickle "
            "from where you trust."
        )


def _preprocess(processor: object, name: str) -> dict:
    """What `Clip` resizes and normalises by, as the processor of a folder does.

    UsageError if it does something else, such as a crop of another size than it resizes to.
    """
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    squash = not processor.do_center_crop and size.get("height") == size.get("width")
    side = size.get("height") if squash else size.get("shortest_edge")
    fits = squash or (processor.do_center_crop and crop.get("height") == crop.get("width") == side)
    steps = processor.do_resize and processor.do_rescale and processor.do_normalize
    scale = abs(processor.rescale_factor * 255 - 1) < 1e-6
    if not (side and fits and steps and scale and int(processor.resample) in RESAMPLING):
        raise UsageError(
            f"The image processor of {name} does something else than to resize, crop to a square "
            "of that size and normalise."
        )
    return {
        "size": int(side),
        "mode": "RGB",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": RESAMPLING[int(processor.resample)],
        "resize_mode": "squash" if squash else "shortest",
    }
