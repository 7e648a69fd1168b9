"""Load OpenAI's original CLIP files: a state dict, or the published JIT archive."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..errors import ClipguideError, ClipguideWarning, UsageError, reason
from .fingerprint import open_clip_architecture
from .parts import Parts, describe_open_clip

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # name in an archive
PUBLISHED = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
PUBLISHED += ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336px")
NEEDED = (
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.weight",
    "text_projection",
    "logit_scale",
    "visual.conv1.weight",
)


def from_file(path: Path, *, name: str, trust_pickle: bool) -> Parts:
    """Return the parts of a CLIP from a file of weights. The weights give the sizes. The rest is as
    OpenAI trained it: QuickGELU, and by default open_clip's tokenizer and preprocessing.

    A file name that OpenAI did not publish gives a warning, because weights do not show the
    activation of their training. A state dict is read with `weights_only`. A JIT archive contains
    code.

    Raises:
        UsageError: it is a JIT archive without `trust_pickle`, or neither kind of file.
        ClipguideError: the weights are of another model.
    """
    state = _read(path, trust_pickle=trust_pickle)
    model = _build(state, path)
    if path.stem not in PUBLISHED:
        warnings.warn(
            f"{path} is taken for a CLIP of OpenAI's, with QuickGELU: for weights of others, name "
            "a folder with an open_clip_config.json.",
            ClipguideWarning,
            stacklevel=5,
        )
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = PreprocessCfg(size=model.visual.image_size)
    open_clip.model.set_model_preprocess_cfg(model, asdict(preprocess))
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    if model.vocab_size != tokenizer.vocab_size:
        raise ClipguideError(
            f"The CLIP {path} was trained with another tokenizer than OpenAI's: it knows "
            f"{model.vocab_size} tokens, not {tokenizer.vocab_size}."
        )
    transform = image_transform_v2(preprocess, is_train=False)
    config = _config(model, asdict(preprocess))
    describe = describe_open_clip(config, tokenizer, None)
    architecture = open_clip_architecture(config["model_cfg"])
    return Parts(model, transform, tokenizer, name, describe, architecture)


def _config(model: nn.Module, preprocess: dict) -> dict:
    """Return the open_clip_config.json of a model of OpenAI. Its weights give the sizes."""
    tower, heads = model.visual, 64  # the width of a head in all models of OpenAI
    side = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]
    vision = {"image_size": side, "head_width": heads}
    if hasattr(tower, "layer1"):  # a ResNet
        layers = [len(getattr(tower, f"layer{i}")) for i in (1, 2, 3, 4)]
        vision |= {"layers": layers, "width": tower.layer1[0].conv1.out_channels}
    else:
        vision |= {
            "layers": len(tower.transformer.resblocks),
            "width": tower.conv1.out_channels,
            "patch_size": tower.conv1.kernel_size[0],
        }
    width = model.ln_final.weight.shape[0]
    text = {
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
        "width": width,
        "heads": width // heads,
        "layers": len(model.transformer.resblocks),
    }
    kept = ("mean", "std", "interpolation", "resize_mode")
    return {
        "model_cfg": {
            "embed_dim": model.text_projection.shape[1],
            "quick_gelu": True,
            "vision_cfg": vision,
            "text_cfg": text,
        },
        "preprocess_cfg": {key: preprocess[key] for key in kept},
    }


def _read(path: Path, *, trust_pickle: bool) -> dict[str, torch.Tensor]:
    archive = _is_archive(path)
    if archive and not trust_pickle:
        raise UsageError(
            f"{path} is a JIT archive, which holds code: give trust_pickle=True (--trust-pickle) "
            "if you trust where it is from."
        )
    try:
        if archive:
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile raise different errors
        raise UsageError(
            f"{path} is no CLIP: it is neither a whole state dict, of tensors and nothing else, "
            "nor a JIT archive, as OpenAI's files are. Other CLIPs are named by their folder."
        ) from error
    if isinstance(state, dict) and "state_dict" in state:
        raise UsageError(
            f"{path} is a checkpoint of a training: name its open_clip model before it, as in "
            f"ViT-B-32/{path}."
        )
    missing = [key for key in NEEDED if key not in state] if isinstance(state, dict) else NEEDED
    if missing:
        raise ClipguideError(
            f"{path} does not hold the weights of a CLIP of OpenAI's: there is no {missing[0]} "
            "among them. Other CLIPs are named by their folder."
        )
    return {key: value for key, value in state.items() if key not in NO_WEIGHTS}


def _is_archive(path: Path) -> bool:
    """Return whether a file is TorchScript: a zip file with code."""
    try:
        with zipfile.ZipFile(path) as file:
            return any("/code/" in name for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _build(state: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """Return the open_clip model of a state dict, in float32. open_clip builds it in float16 like
    OpenAI's, which would round weights that were trained further. So they are loaded once more."""
    from open_clip.model import build_model_from_openai_state_dict

    try:
        model = build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32).float()
        model.load_state_dict(state)
    except Exception as error:  # an unknown size raises various errors
        raise ClipguideError(
            f"The weights in {path} are not those of a CLIP of OpenAI's: {reason(error)}."
        ) from error
    return model
