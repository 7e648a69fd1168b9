"""ImageReward (Xu et al. 2023): the text encoder of BLIP reads the prompt and attends to the image,
and a head computes the score from its first token.

The names of the weights in its checkpoint are those of BLIP's own code. The modules here are those
of transformers, because the package of ImageReward needs transformers 4.

Shapes: B images, 3 channels, H rows, W columns, L tokens.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from ..clip import resize, to_device
from ..clip.resize import tame
from ..errors import ClipguideError, UsageError, reason
from ..images import load
from ..prompts import check_text
from .aesthetic import MLP_PLACES
from .base import Objective, times_each
from .weights import check_trust, load_weights

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # mean and deviation of its transform
_STD = (0.26862954, 0.26130258, 0.27577711)
_RESIZE = {"resize_mode": "shortest", "interpolation": "bicubic"}
_SIZE, _TOKENS = 224, 35
# mean and deviation of the rewards of its training images
_CENTRE, _SPREAD = 0.16717362830052426, 1.0333394966054072
TOKENIZER = "google-bert/bert-base-uncased"
_NAMES = (  # names in BLIP's vision transformer and in transformers
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.\1.layer_norm1."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.\1.layer_norm2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


class ImageReward(Objective):
    """The negative of ImageReward. It scores whole images, and a score is about −2 to 2.

    Args:
        path: the checkpoint ImageReward.pt, a pickle, which needs `trust_pickle`; or the same in
            safetensors.
        prompts: texts: one for all images, or a list as in `Similarity`.
        config: the file med_config.json from the same place.
        tokenizer: the uncased tokenizer of BERT: a folder, or its name on the hub.
        device: the device to run on.
        trust_pickle: whether a pickle may be read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        prompts: str | Sequence[str],
        *,
        config: str | os.PathLike,
        tokenizer: str | os.PathLike = TOKENIZER,
        device: str = "cpu",
        trust_pickle: bool = False,
    ) -> None:
        check_texts(prompts)
        for file in (path, config):
            if not os.path.isfile(file):
                raise UsageError(f"There is no file {file} for ImageReward.")
        check_trust(path, trust_pickle=trust_pickle)
        self.device = to_device(device)
        weights = load_weights(path, trust_pickle=trust_pickle)
        try:
            self._parts = _build(weights, json.loads(Path(config).read_text()), self.device)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ClipguideError(
                f"{path} and {config} are not ImageReward's: {reason(error)}."
            ) from error
        self._tokenizer = _tokenizer(tokenizer)
        self._read(prompts)

    def towards(self, prompts: str | Sequence[str]) -> ImageReward:
        """Return the same model with other texts."""
        check_texts(prompts)
        other = ImageReward.__new__(ImageReward)
        other.device, other._parts, other._tokenizer = self.device, self._parts, self._tokenizer
        other._read(prompts)
        return other

    def __call__(self, image_B3HW, generators=None):
        return -self._reward(self._prepare(image_B3HW))

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return reward_B of images; higher is better."""
        with torch.no_grad():
            return self._reward(self._prepare(image_B3HW))

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return reward_B of RGB images, through its own transform."""
        own = transforms.Compose(
            [
                transforms.Resize(_SIZE, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(_SIZE),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )
        prepared = [own(tame(load(picture), _RESIZE, _SIZE)) for picture in pictures]
        with torch.no_grad():
            return self._reward(torch.stack(prepared).to(self.device))

    def _read(self, prompts: str | Sequence[str]) -> None:
        self.prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        self._tokens = self._tokenizer(
            list(self.prompts),
            padding="max_length",
            truncation=True,
            max_length=_TOKENS,
            return_tensors="pt",
        ).to(self.device)

    def _prepare(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return images at the size of the model, normalised like its own transform."""
        image_B3HW = resize(image_B3HW.to(self.device).float(), _RESIZE, _SIZE)
        mean_3, std_3 = (image_B3HW.new_tensor(values) for values in (_MEAN, _STD))
        return (image_B3HW - mean_3[:, None, None]) / std_3[:, None, None]

    def _reward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the reward, as score_gard of its own code."""
        times = times_each(len(image_B3HW), len(self.prompts), "prompts")
        ids_BL, mask_BL = (
            tokens_BL.repeat_interleave(times, 0)
            for tokens_BL in (self._tokens.input_ids, self._tokens.attention_mask)
        )
        seen_BND = self._parts["vision"](pixel_values=image_B3HW).last_hidden_state
        read_BLD = self._parts["text"](
            input_ids=ids_BL,
            attention_mask=mask_BL,
            encoder_hidden_states=seen_BND,
            encoder_attention_mask=seen_BND.new_ones(seen_BND.shape[:2]),
            is_decoder=False,
        ).last_hidden_state
        return (self._parts["head"](read_BLD[:, 0])[:, 0] - _CENTRE) / _SPREAD


def check_texts(prompts: str | Sequence[str]) -> None:
    """Raise UsageError for prompts that ImageReward does not read."""
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("ImageReward reads one text, or a list of them.")
    for text in texts:
        check_text(text)


def _build(weights: dict[str, torch.Tensor], config: dict, device: torch.device) -> nn.ModuleDict:
    """Return the three parts with the weights of a checkpoint, frozen. Raise RuntimeError or
    KeyError if they do not fit."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    seen, read, head = (_under(weights, p) for p in ("blip.visual_encoder.", "blip.text_encoder.",
                                                     "mlp."))
    width, _, patch, _ = seen["patch_embed.proj.weight"].shape
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=seen["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=len({key.split(".")[1] for key in seen if key[:7] == "blocks."}),
            num_attention_heads=max(1, width // 64),
            image_size=_SIZE,
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
    )
    vision.load_state_dict({_renamed(key): value for key, value in seen.items()})
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act",
            "num_attention_heads", "max_position_embeddings", "layer_norm_eps")  # fmt: skip
    text = BlipTextModel(
        BlipTextConfig(
            **{name: config[name] for name in keep if name in config}, encoder_hidden_size=width
        ),
        add_pooling_layer=False,
    )
    read = {key: value for key, value in read.items() if not key.endswith("position_ids")}
    text.load_state_dict(read, strict=False)
    if missing := [k for k in text.state_dict() if k not in read and "position_ids" not in k]:
        raise KeyError(missing[0])
    sizes = [head[f"layers.{place}.weight"].shape for place in MLP_PLACES]
    layers = nn.Sequential(*(nn.Linear(inner, outer) for outer, inner in sizes))
    layers.load_state_dict(
        {
            f"{k}.{name}": head[f"layers.{place}.{name}"]
            for k, place in enumerate(MLP_PLACES)
            for name in ("weight", "bias")
        }
    )
    parts = nn.ModuleDict({"vision": vision, "text": text, "head": layers})
    return parts.to(device).float().eval().requires_grad_(False)


def _under(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _tokenizer(name: str | os.PathLike) -> object:
    from transformers import BertTokenizer

    try:
        return BertTokenizer.from_pretrained(name)
    except Exception as error:  # errors of the hub and of transformers
        raise ClipguideError(
            f"ImageReward's tokenizer {name} cannot be loaded: {reason(error)}."
        ) from error
