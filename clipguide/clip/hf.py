"""Adapt a CLIP or SigLIP of Hugging Face transformers to the contract of `Clip`.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns, D the width of the embedding.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..errors import ClipguideError, UsageError, reason
from ..hub import without_bars
from . import naflex
from .base import Clip
from .fingerprint import hf_architecture
from .parts import Parts

# model_type -> class
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # the numbers of PIL, which the processor uses


def from_folder(folder: Path, *, name: str, trust_pickle: bool) -> Parts:
    """Return the parts of a local folder that `save_pretrained` of a CLIPModel or SiglipModel
    wrote, with the files of its processor.

    Images go through the image processor of the folder. Tensors are resized in float32 in the same
    way. Weights are read from safetensors, and from a pickle only with `trust_pickle`.

    Raises:
        UsageError: the folder holds something else.
        ClipguideError: it does not load.
    """
    kind = _kind(folder, trust_pickle=trust_pickle)
    import transformers

    load = {"local_files_only": True, "trust_remote_code": False}
    try:
        with without_bars():
            model, found = getattr(transformers, MODELS[kind]).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=None if trust_pickle else True,
                output_loading_info=True,
            )
            _check_weights(found, folder)
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **load)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **load)
    except ClipguideError:
        raise
    except Exception as error:  # transformers, safetensors and json raise different errors
        raise ClipguideError(f"The CLIP {folder} cannot be loaded: {reason(error)}.") from error
    return _parts(model, processor, tokenizer, name)


def wrap_hf_clip(
    model: object,
    processor: object,
    tokenizer: object,
    *,
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
) -> Clip:
    """Return a Clip of a loaded transformers CLIPModel or SiglipModel, its image processor and its
    tokenizer.

    The model does not change. The Clip uses a frozen view of its weights, which is a copy only if
    the device or dtype differs.

    Raises:
        UsageError: the processor does more than resize, crop to a square and normalise.
    """
    parts = _parts(_view(model), processor, tokenizer, name)
    return parts.clip(device=device, dtype=dtype, keep=False)


def _view(model: nn.Module) -> nn.Module:
    """Return a module that shares the weights, but can be frozen and moved alone."""
    shared: dict[int, object] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        shared[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, shared)


def _parts(model: nn.Module, processor: object, tokenizer: object, name: str) -> Parts:
    tower = _Towers(model, _preprocess(processor, name))
    clean = _clean(model.config.model_type)

    def transform(picture: Image.Image) -> torch.Tensor:
        found = processor(images=picture, return_tensors="pt")
        return naflex.packed(found) if tower.patch else found["pixel_values"][0]

    def tokenize(texts: list[str], context_length: int = tower.context_length) -> torch.Tensor:
        return tokenizer(
            [clean(text) for text in texts] if clean else texts,
            padding="max_length",
            truncation=True,
            max_length=context_length,
            return_tensors="pt",
        ).input_ids

    def describe(folder: Path) -> None:
        processor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    tokenize.tokenizer, tokenize.clean_fn = tokenizer, clean
    return Parts(tower, transform, tokenize, name, describe, hf_architecture(model.config))


def _clean(kind: str) -> Callable[[str], str] | None:
    """Return a text as big_vision prepared it for SigLIP: lower-case, without punctuation. Not
    every tokenizer of a SigLIP folder does this by itself."""
    if not kind.startswith("siglip"):
        return None
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn("canonicalize")


class _Towers(nn.Module):
    """A transformers CLIPModel or SiglipModel with the method names of an open_clip model."""

    of_transformers = True

    def __init__(self, model: nn.Module, preprocess: dict) -> None:
        super().__init__()
        self.model, self.visual = model, nn.Module()
        self.visual.preprocess_cfg = preprocess
        self.patch = preprocess.get("patch")  # a SigLIP 2 of flexible resolution
        self.context_length = model.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> torch.Tensor:
        return self.model.logit_scale

    @property
    def logit_bias(self) -> torch.Tensor | None:
        return getattr(self.model, "logit_bias", None)

    def encode_image(self, pixel_B3HW: torch.Tensor) -> torch.Tensor:
        """Return embedding_BD, not normalised."""
        if self.patch:
            whole = pixel_B3HW.shape[1] == 3
            found = naflex.cut(pixel_B3HW, self.patch) if whole else naflex.unpacked(pixel_B3HW)
            return self.model.vision_model(*found).pooler_output
        pooled_BD = self.model.vision_model(pixel_values=pixel_B3HW).pooler_output
        return self._project("visual_projection", pooled_BD)

    def encode_text(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return embedding_BD of texts, not normalised. The padding needs no mask: the attention of
        a CLIP is causal, and its embedding is that of the end token. A SigLIP was trained with
        visible padding."""
        pooled_BD = self.model.text_model(input_ids=tokens_BL).pooler_output
        return self._project("text_projection", pooled_BD)

    def _project(self, name: str, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Apply the projection of that name. The encoders of a SigLIP include theirs."""
        layer = getattr(self.model, name, None)
        return pooled_BD if layer is None else layer(pooled_BD)


def _kind(folder: Path, *, trust_pickle: bool) -> str:
    """Return the model_type of a folder. Raise UsageError if it is not in MODELS, or not in
    safetensors."""
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{folder / 'config.json'} is not the configuration of a model.") from None
    if kind not in MODELS:
        raise UsageError(f"{folder} holds a model of type {kind!r}, neither a CLIP nor a SigLIP.")
    if not any(folder.glob("*.safetensors")) and not trust_pickle:
        raise UsageError(
            f"{folder} has no weights in a .safetensors file: give trust_pickle=True "
            "(--trust-pickle) to read a pickle from where you trust."
        )
    return kind


def _check_weights(found: dict, folder: Path) -> None:
    """Raise ClipguideError if weights are missing, which transformers would initialise at random,
    or unused."""
    missing, over = (
        sorted(key for key in found[keys] if not key.endswith("position_ids"))  # for older versions
        for keys in ("missing_keys", "unexpected_keys")
    )
    if missing or over:
        some = f"{missing[0]} is missing" if missing else f"there is no place for {over[0]}"
        raise ClipguideError(
            f"The weights in {folder} are not those of the model that its config.json describes: "
            f"{some}, one of {len(missing) + len(over)} that do not fit."
        )


def _preprocess(processor: object, name: str) -> dict:
    """Return the settings that `Clip` resizes and normalises with, as the processor of a folder
    does. Raise UsageError if it does something else, such as a crop of another size than its
    resize."""
    if hasattr(processor, "max_num_patches"):
        return _patches(processor)
    crops = getattr(processor, "do_center_crop", None)  # the processor of a SigLIP has no crop
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    squash = not crops and size.get("height") == size.get("width")
    side = size.get("height") if squash else size.get("shortest_edge")
    fits = squash or (crops and crop.get("height") == crop.get("width") == side)
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


def _patches(processor: object) -> dict:
    """Return the same for a SigLIP 2 that keeps the aspect ratio. The size is that of a square."""
    patch, most = int(processor.patch_size), int(processor.max_num_patches)
    return {
        "size": patch * math.isqrt(most),
        "patch": patch,
        "patches": most,
        "mode": "RGB",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": RESAMPLING[int(processor.resample)],
        "resize_mode": "patches",
    }
