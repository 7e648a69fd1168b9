"""Which parameters of a CLIP are trained: four methods, from the cheapest to all parameters.

- `head`: a linear map of the image embedding. It starts as the identity, and is merged into the
  last layer of the image encoder. With classes, it is a linear probe that starts at the zero-shot
  classifier (Wortsman et al. 2022, §3): the logits f W^T of a probe W = T M, with the text
  embeddings T, are those of T for the map M.
- `lora`: low-rank updates of the layers of both encoders, by peft (Hu et al. 2022), which are
  merged at the end.
- `lit`: the text encoder alone. The image encoder is frozen (Zhai et al. 2022).
- `full`: both encoders.

All methods except `head` also train the scale of the logits, and their bias if there is one. Batch
norms keep their statistics.

Legend: D embedding, F features before the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..clip import Parts
from ..errors import UsageError, close_matches

METHODS = ("head", "lora", "lit", "full")
LAST = ("head.proj", "head.mlp.fc2", "attnpool.c_proj", "proj", "trunk.head.fc")
TEXT = ("text", "transformer", "token_embedding", "positional_embedding", "ln_final")
TEXT += ("text_projection", "model.text_model", "model.text_projection")


def check_method(method: str) -> None:
    """Raise UsageError if there is no such method."""
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}.{close_matches(method, METHODS)}")


def is_text(name: str) -> bool:
    """Return whether a parameter with this name belongs to the text encoder."""
    return any(name == part or name.startswith(f"{part}.") for part in TEXT)


def is_scale(name: str) -> bool:
    """Return whether the parameter is the scale or the bias of the logits."""
    return name.endswith(("logit_scale", "logit_bias"))


def prepare(parts: Parts, method: str, *, rank: int = 8, seed: int = 0) -> nn.Module:
    """Return the model with only the parameters of `method` open. For `lora`, peft wraps it in
    place, and the seed draws its first weights."""
    check_method(method)
    model = parts.model.eval()
    model.requires_grad_(False)
    if method == "lora":
        add_lora(model, rank, seed)
    for name, parameter in model.named_parameters():
        lora = "lora_" in name
        opened = {
            "head": False,
            "lora": lora,
            "lit": is_text(name),
            "full": True,
        }[method]
        parameter.requires_grad_(opened or is_scale(name))
    return model


def add_lora(model: nn.Module, rank: int, seed: int = 0) -> None:
    """Add low-rank changes to all linear layers, 1 x 1 convolutions and attentions. Raise
    UsageError without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError(
            "lora needs peft: pip install 'clipguide[finetune]', or take another method."
        ) from None

    targets = [name for name, module in model.named_modules() if _low_rank(module)]
    inside = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    targets = [t for t in targets if not any(t.startswith(f"{n}.") for n in inside)]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=0.0)
    with torch.random.fork_rng():  # peft draws from the global generator
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


@dataclass(frozen=True)
class Adapter:
    """The low-rank changes alone, by their names, and their configuration for peft."""

    weights: dict[str, Tensor]
    config: object

    def save(self, folder: Path, *, share: float = 1.0) -> None:
        """Save the adapter in peft's format, scaled by `share`, which is the share of WiSE-FT."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        self.config.save_pretrained(folder)
        weights = {k: v * share if ".lora_B." in k else v for k, v in self.weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def adapter_of(model: nn.Module) -> Adapter:
    """Return the low-rank changes of a model after `add_lora`, before they are merged."""
    from peft import get_peft_model_state_dict

    weights = {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(model).items()}
    return Adapter(weights, model.peft_config["default"])


def merge_lora(model: nn.Module) -> None:
    """Merge the low-rank changes into the weights, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        if ".base_layer." in name:  # part of an attention, which merges it
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain = layer.unload_and_optionally_merge_module(True, True, None)
        else:
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)


def _low_rank(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear | nn.MultiheadAttention)


@torch.no_grad()
def merge_head(parts: Parts, map_DD: Tensor) -> None:
    """Merge the map, image embedding · map_DD, into the last layer of the image encoder. Raise
    UsageError if the encoder does not end in a linear layer."""
    layer = last_layer(parts)
    map_DD = map_DD.to(layer.weight if isinstance(layer, nn.Linear) else layer)
    if isinstance(layer, nn.Parameter):  # features_BF @ proj_FD
        layer.copy_(layer @ map_DD)
        return
    layer.weight.copy_(map_DD.T @ layer.weight)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias @ map_DD)


def last_layer(parts: Parts) -> nn.Linear | nn.Parameter:
    """Return the layer that makes the embedding of the image encoder."""
    found: object = None
    if parts.is_hf:
        found = getattr(parts.model.model, "visual_projection", None)
    else:
        for name in LAST:
            found = _at(parts.model.visual, name)
            if isinstance(found, nn.Linear | nn.Parameter):
                break
    if not isinstance(found, nn.Linear | nn.Parameter):
        raise UsageError(
            f"The image tower of {parts.name} does not end in a linear layer, so that its head "
            "cannot be trained alone: take lora, lit or full."
        )
    return found


def _at(module: nn.Module, name: str) -> object:
    for part in name.split("."):
        module = getattr(module, part, None)
    return module
