"""Compute digests of everything that changes the vectors of a CLIP."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

IMAGE = ("visual.", "model.vision_model.", "model.visual_projection.")
PROBES = (  # texts on which tokenizers differ
    "",
    "a",
    "A Red FOX, in the SNOW!",
    "a_red-fox... (really?) [yes] {no} #1 @home 50% $3.20 2+2=4",
    "  two  spaces,\ta tab\nand a line ",
    "don't it's we're I'll o'clock rock'n'roll",
    "&amp; &lt;b&gt; <b> </s> <pad> <start_of_text> <|endoftext|>",
    "0 1 12 123 1234 12345 1,234.5 3.14159 1e-5 ½ ² ①",
    "café cafe\u0301 naïve Ångström ﬁne Straße İstanbul",
    "рыжая лиса αλεπού ثعلب שועל लोमड़ी 狐狸 きつね キツネ 여우",
    "🦊 👩‍🚀 🇫🇷 ❤️ ☃ \u200b\ufeff \x00 \x7f",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "https://example.org/a?b=c&d=e",
    " ".join(f"word{number}" for number in range(100)),
)
NO_MATTER = {  # entries about training, or about the source of weights and tokenizers
    "attention_dropout",
    "attention_probs_dropout_prob",
    "architectures",
    "attn_implementation",
    "dropout",
    "dtype",
    "hf_model_pretrained",
    "hf_tokenizer_name",
    "hidden_dropout_prob",
    "initializer_factor",
    "initializer_range",
    "output_tokens",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "tokenizer_kwargs",
    "tokenizer_mode",
    "torch_dtype",
    "transformers_version",
}


class Fingerprints(NamedTuple):
    """The sha256 digests of what changes the vectors of images, and of what changes those of images
    or texts."""

    image: str
    whole: str


class Architecture(NamedTuple):
    """What the configuration of a checkpoint says about its encoders, besides the weights."""

    image: Mapping[str, object] = {}
    text: Mapping[str, object] = {}


def fingerprint(modules: dict[str, nn.Module], *, extra: object = None) -> str:
    """Return the sha256 digest of all tensors, by sorted name, floats as float32, and of `extra` as
    JSON."""
    digest = hashlib.sha256(json.dumps(extra, sort_keys=True).encode())
    for part, module in sorted(modules.items()):
        tensors = module.state_dict()
        _add(digest, ((f"{part}.{name}", tensors[name]) for name in sorted(tensors)))
    return digest.hexdigest()


def fingerprints(
    model: nn.Module,
    *,
    preprocess: dict,
    architecture: Architecture,
    tokenizer: Callable[..., torch.Tensor],
) -> Fingerprints:
    """Return the digests of a CLIP: of its weights, configuration, preprocessing and tokenizer.

    The digest of a tokenizer covers its vocabulary, if it has one, and its tokens of texts on which
    tokenizers differ. If no tensor is known to belong to the image encoder, the digest covers the
    whole model.
    """
    tensors = model.state_dict()
    image = [name for name in sorted(tensors) if name.startswith(IMAGE)] or sorted(tensors)
    facts = {**_facts(architecture.image), "quick_gelu": _quick(model.visual)}
    digest = _begin([preprocess, facts])
    _add(digest, ((name, tensors[name]) for name in image))
    of_images = digest.hexdigest()
    facts = {**_facts(architecture.text), "quick_gelu": _quick(model)}
    vocabulary = _vocabulary(tokenizer)
    digest = _begin([of_images, facts, vocabulary])
    _add(digest, [("tokens", tokenizer(list(PROBES)))])
    _add(digest, ((name, tensors[name]) for name in sorted(set(tensors) - set(image))))
    return Fingerprints(of_images, digest.hexdigest())


def open_clip_architecture(config: Mapping) -> Architecture:
    """Return the entries of model_cfg in an open_clip_config.json that differ from open_clip's
    defaults."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision = _changed(config.get("vision_cfg", {}), CLIPVisionCfg())
    text = _changed(config.get("text_cfg", {}), CLIPTextCfg())
    return Architecture({**vision, "embed_dim": config.get("embed_dim")}, text)


def hf_architecture(config: object) -> Architecture:
    """Return the entries of the configuration of a transformers CLIPModel or SiglipModel that
    differ from the defaults."""
    vision, text = (c.to_diff_dict() for c in (config.vision_config, config.text_config))
    width = getattr(config, "projection_dim", None)
    return Architecture({**vision, "embed_dim": width}, text)


def _changed(given: Mapping, default: object) -> dict:
    known = dataclasses.asdict(default)
    return {k: v for k, v in given.items() if k not in known or known[k] != v}


def _facts(of: Mapping[str, object]) -> dict:
    return {k: v for k, v in of.items() if k not in NO_MATTER and not k.startswith("_")}


def _quick(model: nn.Module) -> bool:
    """Return whether the model has a QuickGELU. open_clip can get it from another place than the
    file."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def _vocabulary(tokenizer: object) -> str | None:
    """Return a digest of the tokens and their numbers, or None if the tokenizer does not list them.
    """
    if isinstance(tokenizer, partial):  # arguments of `read`, or of the tokenizer itself
        tokenizer = tokenizer.args[0] if tokenizer.args else tokenizer.func
    own = getattr(tokenizer, "tokenizer", None)
    known = own.get_vocab() if hasattr(own, "get_vocab") else getattr(tokenizer, "encoder", None)
    return _begin(known).hexdigest() if isinstance(known, dict) else None


def _begin(facts: object) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())


def _add(digest: hashlib._Hash, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        if tensor.is_floating_point():
            tensor = tensor.float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
