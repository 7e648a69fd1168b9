"""A tiny CLIP and a tiny SigLIP of random weights in the format of transformers."""

from __future__ import annotations

import torch
from conftest import CONTEXT_LENGTH, IMAGE_SIZE, write_tokenizer


def write_hf_clip(folder, *, seed: int = 0):
    """A folder that CLIPModel and CLIPProcessor load."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    size = write_tokenizer(folder)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": size,
            "hidden_size": 24,
            "intermediate_size": 32,
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
            "pad_token_id": size - 1,
        },
        vision_config={
            **tower,
            "hidden_size": 32,
            "intermediate_size": 48,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
        },
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    _save(model, folder)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    ).save_pretrained(folder)
    return folder


def write_hf_siglip(folder, *, seed: int = 0):
    """A folder that SiglipModel and SiglipProcessor's parts load: squashed, unmasked, with a bias.

    The tokenizer pads with an id of its own, which the model sees, as a SigLIP does.
    """
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    size = write_tokenizer(folder)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = SiglipConfig(
        text_config={
            **tower,
            "vocab_size": size,
            "hidden_size": 32,
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
            "pad_token_id": size - 1,
        },
        vision_config={**tower, "hidden_size": 32, "image_size": IMAGE_SIZE, "patch_size": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
        model.logit_bias.fill_(-7.5)
    _save(model, folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    SiglipImageProcessor(size=side).save_pretrained(folder)
    return folder


def write_hf_siglip2(folder, *, seed: int = 0):
    """A SigLIP 2 of flexible resolution: up to 16 patches of 8 pixels, of any aspect."""
    from transformers import (
        CLIPTokenizer,
        PreTrainedTokenizerFast,
        Siglip2Config,
        Siglip2ImageProcessor,
        Siglip2Model,
    )

    size = write_tokenizer(folder)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tower["hidden_size"] = 32
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    length = {"vocab_size": size, "max_position_embeddings": CONTEXT_LENGTH}
    config = Siglip2Config(
        text_config={**tower, **length, **ids},
        vision_config={**tower, "patch_size": 8, "num_patches": 16},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Siglip2Model(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
        model.logit_bias.fill_(-7.5)
    _save(model, folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    own = CLIPTokenizer.from_pretrained(folder)
    tokens = {f"{name}_token": "<|endoftext|>" for name in ("eos", "pad", "unk")}
    tokens["padding_side"] = "right"
    fast = PreTrainedTokenizerFast(tokenizer_object=own.backend_tokenizer, **tokens)
    fast.save_pretrained(folder)  # a tokenizer.json, as the hub's folders have
    return folder


def _save(model, folder) -> None:
    with torch.no_grad():  # weights so small would see all images alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
