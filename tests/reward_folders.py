"""Tiny models of random weights in the formats that rewards are published in."""

from __future__ import annotations

import json

import torch
from torch import nn

WORDS = ("yes", "no", "Yes", "No", "is", "it", "a", "red", "fox", "?", "<|Reward|>", "rate", "this")
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<unk>",
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ part['text'] }} {% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def seeded(make, *, seed: int = 0, spread: float = 3.0):
    """A module whose random weights see images apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    return module.eval()


def write_dino(folder, *, size: int = 36, crop: int = 28):
    """A DINOv2 with patches of 14 pixels, and the processor that they have."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=crop, patch_size=14
    )
    seeded(lambda: Dinov2Model(config)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": crop, "width": crop},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def write_qwen2vl(folder, *, rows: int | None = None):
    """A Qwen2-VL with a processor, a chat template and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:7]),
    )
    ids = {word: vocabulary[word] for word in SPECIAL}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": rows or len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 14,
        },  # fmt: skip
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = seeded(lambda: Qwen2VLForConditionalGeneration(config))
    model.save_pretrained(folder)
    pixels = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


class Attention(nn.Module):
    """BERT's attention of plain torch, to itself or to what another encoder saw."""

    def __init__(self, width: int, other: int) -> None:
        super().__init__()
        self.self = nn.Module()
        self.self.query = nn.Linear(width, width)
        self.self.key, self.self.value = nn.Linear(other, width), nn.Linear(other, width)
        self.output = nn.Module()
        self.output.dense = nn.Linear(width, width)
        self.output.LayerNorm = nn.LayerNorm(width, 1e-12)

    def forward(self, x, seen, mask=None, heads=2):
        def split(y):
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        own = self.self
        q, k, v = split(own.query(x)), split(own.key(seen)), split(own.value(seen))
        mask = None if mask is None else mask[:, None, None].bool()
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found = self.output.dense(found.transpose(1, 2).flatten(2))
        return self.output.LayerNorm(found + x)


class Bert(nn.Module):
    """BLIP's text encoder (med.py) under its own names: BERT with cross attention in each layer."""

    def __init__(self, words: int, width: int, other: int, layers: int) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(words, width)
        self.embeddings.position_embeddings = nn.Embedding(64, width)
        self.embeddings.LayerNorm = nn.LayerNorm(width, 1e-12)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(nn.Module() for _ in range(layers))
        for layer in self.encoder.layer:
            layer.attention, layer.crossattention = Attention(width, width), Attention(width, other)
            layer.intermediate, layer.output = nn.Module(), nn.Module()
            layer.intermediate.dense = nn.Linear(width, 2 * width)
            layer.output.dense = nn.Linear(2 * width, width)
            layer.output.LayerNorm = nn.LayerNorm(width, 1e-12)

    def forward(self, ids, mask, seen):
        places = torch.arange(ids.shape[1])
        x = self.embeddings.word_embeddings(ids) + self.embeddings.position_embeddings(places)
        x = self.embeddings.LayerNorm(x)
        for layer in self.encoder.layer:
            x = layer.attention(x, x, mask)
            x = layer.crossattention(x, seen)
            inner = nn.functional.gelu(layer.intermediate.dense(x))
            x = layer.output.LayerNorm(layer.output.dense(inner) + x)
        return x


def write_image_reward(folder):
    """ImageReward's layout: BLIP's names, the pickle, med_config.json, BERT's tokenizer; and its
    parts, of timm and of plain torch."""
    from timm.models.vision_transformer import VisionTransformer

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "owl", "an"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    vision = seeded(
        lambda: VisionTransformer(
            img_size=224, patch_size=32, embed_dim=128, depth=2, num_heads=2, mlp_ratio=2,
            num_classes=0, global_pool="",
        )
    )  # fmt: skip
    text = seeded(lambda: Bert(len(words) + 2, 32, 128, 2), seed=1)
    head = nn.Module()
    sizes = (32, 16, 12, 8, 4, 1)
    steps = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
    drops = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
    order = [steps[0], drops[0], steps[1], drops[1], steps[2], drops[2], steps[3], steps[4]]
    head.layers = seeded(lambda: nn.Sequential(*order), seed=2)
    state = {f"blip.visual_encoder.{k}": v for k, v in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in text.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    state["blip.vision_proj.weight"] = torch.zeros(4, 128)  # of BLIP's training; unused
    state |= {f"mlp.{k}": v for k, v in head.state_dict().items()}
    torch.save(state, folder / "ImageReward.pt")
    config = {
        "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": 32,
        "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
        "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": len(words) + 2,
        "encoder_width": 768, "add_cross_attention": True, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(config))
    return vision, text, head
