"""Export to Hugging Face transformers: an open_clip model as CLIPModel and CLIPProcessor.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns, S the side in pixels of the
encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..clip import Clip, Parts
from ..clip.resize import resize
from ..errors import UsageError
from ..hub import without_bars
from ..images import to_pil
from .onnx import EXACT, HALF, failing, quiet
from .probes import Probes, compare, demand
from .tokens import openai_tokenizer

READ = 4  # images that also go through the processor
RESIZED = 0.995  # their minimum cosine similarity: another library resizes them

BLOCK = {  # names of the layers of a block in open_clip and in transformers
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
MODES = ("shortest", "squash")  # interpolations of CLIPImageProcessor


def write(
    parts: Parts, clip: Clip, folder: Path, probes: Probes, *, fp16: bool
) -> dict[str, dict[str, object]]:
    """Write a folder that CLIPModel and CLIPProcessor load. Load it and compare it with torch."""
    with quiet(), failing(f"The CLIP {parts.name} cannot be written for transformers"):
        if parts.is_hf:
            parts.describe(folder)
            model = _copy(parts.model.model)
        else:
            model = convert(parts)
            processor(parts).save_pretrained(folder)
        (model.half() if fp16 else model).save_pretrained(folder, max_shard_size="1000GB")
        image_ND, text_ND = _vectors(folder, clip, probes)
        seen_ND, known_ND = _processed(folder, clip, probes)
    said = {}
    for kind, ours, theirs, bar in (
        ("image", image_ND, probes.image_ND, HALF if fp16 else EXACT),
        ("text", text_ND, probes.text_ND, HALF if fp16 else EXACT),
        ("image (through the processor)", seen_ND, known_ND, RESIZED),
    ):
        found = compare(ours, theirs, what=f"The {kind} tower in transformers")
        what = f"The {kind} tower for transformers"
        said[f"{kind} tower"] = {"cosine": demand(found, bar, what=what)}
    return said


def check(parts: Parts) -> None:
    """Raise UsageError, in one sentence, for a model that does not fit CLIPModel."""
    if not parts.is_hf and (why := why_not(parts)):
        raise UsageError(
            f"{parts.name} cannot become a CLIPModel of transformers: {why}. Export it --to onnx."
        )


def why_not(parts: Parts) -> str | None:
    """Return what a CLIPModel cannot represent of an open_clip model, or None."""
    model = parts.model
    vision, text = model.visual, getattr(model, "text", model)
    if type(vision).__name__ != "VisionTransformer":
        inner = type(getattr(vision, "trunk", vision)).__name__
        return f"its image tower is a {inner}, not a vision transformer of CLIP's"
    if getattr(vision, "attn_pool", None) is not None or vision.pool_type != "tok":
        return "its image tower does not pool by the class token"
    if not isinstance(vision.ln_pre, nn.LayerNorm):
        return "its image tower has no layer norm before the blocks"
    if vision.proj is None or vision.conv1.bias is not None:
        return "its image tower begins or ends in other layers than CLIP's"
    if vision.patch_size[0] != vision.patch_size[1]:
        return "its patches are no squares"
    if not hasattr(text, "token_embedding"):
        return f"its text tower is a {type(text).__name__}, not CLIP's"
    if text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return "its text tower is not causal as CLIP's"
    pool = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        return f"its text tower does not pool by the end token, but by {pool!r}"
    if _projection(text) is None:
        return "its text tower ends in another layer than CLIP's"
    if getattr(model, "logit_bias", None) is not None:
        return "it was trained by SigLIP's loss, with a bias of the logits"
    for block in (*vision.transformer.resblocks, *text.transformer.resblocks):
        if type(block).__name__ != "ResidualAttentionBlock" or not _plain(block):
            return "its blocks are not CLIP's"
        if _activation(block) is None:
            return f"its blocks activate by {type(block.mlp.gelu).__name__}"
    if parts.preprocess["resize_mode"] not in MODES:
        return f"its images are resized by {parts.preprocess['resize_mode']!r}"
    return None


def convert(parts: Parts) -> nn.Module:
    """Return the CLIPModel, in float32, of an open_clip model for which `why_not` returns None."""
    from transformers import CLIPConfig, CLIPModel

    model = parts.model
    vision, text = model.visual, getattr(model, "text", model)
    projection_dim = vision.proj.shape[1]
    tokens_1L = parts.tokenizer(["a"])
    end = int(getattr(text, "eos_id", None) if _pool(text) == "eos" else tokens_1L.max())
    config = CLIPConfig(
        projection_dim=projection_dim,
        vision_config={
            **_sizes(vision.transformer),
            "image_size": parts.image_size,
            "patch_size": vision.patch_size[0],
            "projection_dim": projection_dim,
        },
        text_config={
            **_sizes(text.transformer),
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": text.positional_embedding.shape[0],
            "projection_dim": projection_dim,
            "bos_token_id": int(tokens_1L[0, 0]),
            "eos_token_id": end,
            "pad_token_id": int(tokens_1L[0, -1]),
        },
    )
    made = CLIPModel(config)
    state = {k: v.detach().float().cpu().clone() for k, v in _state(model, vision, text)}
    missing, over = made.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing or over:
        raise UsageError(
            f"{parts.name} cannot become a CLIPModel: {(missing + over)[0]} does not fit."
        )
    return made.eval()


def processor(parts: Parts) -> object:
    """Return the CLIPProcessor of an open_clip model: its preprocessing and its tokenizer."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    config, side = parts.preprocess, parts.image_size
    square, crops = {"height": side, "width": side}, config["resize_mode"] == "shortest"
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": side} if crops else square,
        crop_size=square,
        do_center_crop=crops,
        resample=2 if config["interpolation"] == "bilinear" else 3,
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )
    own = parts.tokenizer
    tokenizer = openai_tokenizer(own) if hasattr(own, "bpe_ranks") else own.tokenizer
    tokenizer.model_max_length = getattr(parts.model, "text", parts.model).context_length
    return CLIPProcessor(image_processor, tokenizer)


def _state(
    model: nn.Module, vision: nn.Module, text: nn.Module
) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the weights by their names in a CLIPModel."""
    yield "logit_scale", model.logit_scale.reshape(())
    yield "visual_projection.weight", vision.proj.T
    yield "text_projection.weight", _projection(text)
    seen = "vision_model.embeddings."
    yield seen + "class_embedding", vision.class_embedding
    yield seen + "patch_embedding.weight", vision.conv1.weight
    yield seen + "position_embedding.weight", vision.positional_embedding
    read = "text_model.embeddings."
    yield read + "token_embedding.weight", text.token_embedding.weight
    yield read + "position_embedding.weight", text.positional_embedding
    for name, layer in (
        ("vision_model.pre_layrnorm", vision.ln_pre),  # transformers' spelling
        ("vision_model.post_layernorm", vision.ln_post),
        ("text_model.final_layer_norm", text.ln_final),
    ):
        yield from _layer(name, layer)
    for tower, transformer in (("vision", vision.transformer), ("text", text.transformer)):
        for i, block in enumerate(transformer.resblocks):
            prefix = f"{tower}_model.encoder.layers.{i}."
            for ours, theirs in BLOCK.items():
                yield from _layer(prefix + theirs, block.get_submodule(ours))
            for kind in ("weight", "bias"):
                three = getattr(block.attn, f"in_proj_{kind}").chunk(3)
                for letter, values in zip("qkv", three):
                    yield f"{prefix}self_attn.{letter}_proj.{kind}", values


def _layer(name: str, layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.weight", layer.weight
    yield f"{name}.bias", layer.bias


def _sizes(transformer: nn.Module) -> dict[str, object]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _activation(block),
        "layer_norm_eps": block.ln_1.eps,
    }


def _activation(block: nn.Module) -> str | None:
    """Return transformers' name of the activation of a block."""
    act = block.mlp.gelu
    if type(act).__name__ == "QuickGELU":
        return "quick_gelu"
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_pytorch_tanh"
    return None


def _plain(block: nn.Module) -> bool:
    """Return whether a block has no layer scale, and torch's attention with biases."""
    scales = (block.ls_1, block.ls_2)
    attention = block.attn
    whole = isinstance(attention, nn.MultiheadAttention) and attention.in_proj_bias is not None
    return whole and all(isinstance(one, nn.Identity) for one in scales)


def _pool(text: nn.Module) -> str:
    return getattr(text, "pool_type", None) or getattr(text, "text_pool_type", "argmax")


def _projection(text: nn.Module) -> torch.Tensor | None:
    """Return weight_DW of the last layer of a text encoder, if it has only this."""
    last = getattr(text, "text_projection", None)
    if isinstance(last, nn.Linear):
        return last.weight if last.bias is None else None
    return None if last is None else last.T


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).cpu()


@torch.no_grad()
def _vectors(folder: Path, clip: Clip, probes: Probes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors_ND of the probes by the model in a folder. Images are resized as in
    `Clip`; the tokenizer is that of the folder."""
    from transformers import AutoModel, AutoProcessor

    with without_bars():
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoProcessor.from_pretrained(folder, local_files_only=True).tokenizer
    mean_3, std_3 = (torch.tensor(clip.preprocess[key])[:, None, None] for key in ("mean", "std"))
    image_ND = []
    for image_13HW in probes.image_13HW:
        image_13SS = resize(image_13HW, clip.preprocess, clip.image_size)
        pixel_13SS = ((image_13SS - mean_3) / std_3).to(model.dtype)
        image_ND.append(_features(model.get_image_features(pixel_values=pixel_13SS)))
    tokens_NL = tokenizer(
        probes.texts,
        padding="max_length",
        truncation=True,
        max_length=clip.context_length,
        return_tensors="pt",
    ).input_ids
    text_ND = _features(model.get_text_features(input_ids=tokens_NL))
    return torch.cat(image_ND).float(), text_ND.float()


@torch.no_grad()
def _processed(folder: Path, clip: Clip, probes: Probes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors_ND of some probes as files would be read: by the processor of the folder,
    and by the transform of the CLIP. Torchvision may resize for the first, and Pillow for the
    second."""
    from transformers import AutoModel, AutoProcessor

    with without_bars():
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    pictures = [to_pil(image_13HW)[0] for image_13HW in probes.image_13HW[:READ]]
    pixels = [processor.image_processor(images=p, return_tensors="pt") for p in pictures]
    seen = [model.get_image_features(p["pixel_values"].to(model.dtype)) for p in pixels]
    seen_ND = torch.cat([_features(found) for found in seen]).float()
    return seen_ND, clip.encode_pictures(pictures).cpu()


def _features(found: object) -> torch.Tensor:
    """Return the vectors of get_image_features. It returns a tensor or an output, depending on the
    version."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output
