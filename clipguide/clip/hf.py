"""A CLIP or SigLIP of Hugging Face transformers, under the contract of `Clip`.

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

MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}  # by model_type
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, which the processor's are


def from_folder(folder: Path, *, name: str, trust_pickle: bool) -> Parts:
    """The parts of a local folder that `save_pretrained` of a CLIPModel or SiglipModel wrote, with
    its processor's files.

    Images go through the folder's own image processor; tensors are resized in float32 as it
    resizes. Weights are read from safetensors, from a pickle only with `trust_pickle`. UsageError
    for a folder of something else, ClipguideError for one that does not load.
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
    except Exception as error:  # transformers, safetensors and json each raise their own
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
    """A Clip of a transformers CLIPModel or SiglipModel, its image processor and its tokenizer,
    already loaded. The model stays as it is: the Clip sees its weights through a view, which is
    frozen, and is a copy only where device or dtype differ.

    UsageError if the processor does more than to resize, crop to a square and normalise.
    """
    parts = _parts(_view(model), processor, tokenizer, name)
    return parts.clip(device=device, dtype=dtype, keep=False)


def _view(model: nn.Module) -> nn.Module:
    """A module of the same weights, in the same memory, which can be frozen and moved alone."""
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
    """What a SigLIP's texts went through before its tokenizer: lower-cased, without punctuation, as
    big_vision trained it. Not all tokenizers of its folders do that by themselves."""
    if not kind.startswith("siglip"):
        return None
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn("canonicalize")


class _Towers(nn.Module):
    """A transformers CLIPModel or SiglipModel with the names of an open_clip model."""

    of_transformers = True

    def __init__(self, model: nn.Module, preprocess: dict) -> None:
        super().__init__()
        self.model, self.visual = model, nn.Module()
        self.visual.preprocess_cfg = preprocess
        self.patch = preprocess.get("patch")  # of a SigLIP 2 of flexible resolution
        self.context_length = model.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> torch.Tensor:
        return self.model.logit_scale

    @property
    def logit_bias(self) -> torch.Tensor | None:
        return getattr(self.model, "logit_bias", None)

    def encode_image(self, pixel_B3HW: torch.Tensor) -> torch.Tensor:
        """Embedding_BD, not of unit length."""
        if self.patch:
            whole = pixel_B3HW.shape[1] == 3
            found = naflex.cut(pixel_B3HW, self.patch) if whole else naflex.unpacked(pixel_B3HW)
            return self.model.vision_model(*found).pooler_output
        pooled_BD = self.model.vision_model(pixel_values=pixel_B3HW).pooler_output
        return self._project("visual_projection", pooled_BD)

    def encode_text(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """The same of texts. The padding needs no mask: a CLIP's attention is causal, and its
        embedding is the end token's; a SigLIP was trained to see the padding."""
        pooled_BD = self.model.text_model(input_ids=tokens_BL).pooler_output
        return self._project("text_projection", pooled_BD)

    def _project(self, name: str, pooled_BD: torch.Tensor) -> torch.Tensor:
        """By the layer of that name; a SigLIP's towers end in theirs."""
        layer = getattr(self.model, name, None)
        return pooled_BD if layer is None else layer(pooled_BD)


def _kind(folder: Path, *, trust_pickle: bool) -> str:
    """The model_type of a folder. UsageError if it is none of MODELS, or not in safetensors."""
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
    """ClipguideError if weights were missing, which transformers would make at random, or over."""
    missing, over = (
        sorted(key for key in found[keys] if not key.endswith("position_ids"))  # of older versions
        for keys in ("missing_keys", "unexpected_keys")
    )
    if missing or over:
        some = f"{missing[0]} is missing" if missing else f"there is no place for {over[0]}"
        raise ClipguideError(
            f"The weights in {folder} are not those of the model that its config.json describes: "
            f"{some}, one of {len(missing) + len(over)} that do not fit."
        )


def _preprocess(processor: object, name: str) -> dict:
    """What `Clip` resizes and normalises by, as the processor of a folder does.

    UsageError if it does something else, such as a crop of another size than it resizes to.
    """
    if hasattr(processor, "max_num_patches"):
        return _patches(processor)
    crops = getattr(processor, "do_center_crop", None)  # a SigLIP's knows no crop
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
    """The same of a SigLIP 2 that keeps the aspect: the size is that of a square."""
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
