"""Convert the VQGANs of taming-transformers to the VQModel of the VQGAN canvas.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis". The weights give the
layout, so no YAML is needed. The layers are those of diffusers under other names. Their attention
(one head) has convolutions with one pixel where diffusers has linear layers.

Shapes: K codes of D channels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import ClipguideError, UsageError
from ..objectives.weights import check_trust, load_weights

if TYPE_CHECKING:
    from diffusers import VQModel

FIRST_STAGE = "first_stage_model."  # prefix of the VQGAN in a checkpoint of the transformer
CODEBOOK, GUMBEL_CODEBOOK = "quantize.embedding.weight", "quantize.embed.weight"
GROUPS = 32  # groups of every group norm
NEEDED = (  # weights that give the layout
    "encoder.conv_in.weight",
    "encoder.down.0.block.0.conv1.weight",
    "encoder.conv_out.weight",
    "decoder.conv_out.weight",
    "post_quant_conv.weight",
)
UNUSED = ("loss.", "quantize.proj.")  # weights of the training, and of a Gumbel encoder
NAMES = {  # part of a name in diffusers -> that in taming-transformers
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "down_blocks": "down",
    "resnets": "block",
    "attentions": "attn",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
LIGHTNING = (  # classes that checkpoints of pytorch_lightning name besides the weights
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)


class _Nothing:
    """A placeholder for a class of pytorch_lightning while a checkpoint is read."""


def load_taming(path: str | os.PathLike, *, trust_pickle: bool = False) -> VQModel:
    """Return the VQGAN of a checkpoint of taming-transformers, converted by `convert`.

    `path` is a .safetensors file, or with `trust_pickle` a .ckpt, read with `weights_only`: a state
    dict, or a dict with one under "state_dict".

    Raises:
        UsageError: there is no such file, it is a pickle that is not trusted, or it holds no VQGAN.
        ClipguideError: it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        check_trust(path, trust_pickle=trust_pickle)
    with torch.serialization.safe_globals([(_Nothing, name) for name in LIGHTNING]):
        state = load_weights(path, trust_pickle=trust_pickle)
    return convert(state)


def convert(state: Mapping[str, torch.Tensor]) -> VQModel:
    """Return the VQModel, in float32 and frozen, that computes the same as the VQGAN of this state
    dict.

    Of a Gumbel VQGAN (`quantize.embed`, `quantize.proj`), the codebook and the decoder are
    converted. It takes the code with the greatest logit `quantize.proj(latents)`, not the nearest
    one. So `encode` of the model returns latents that are not near the codes of the image, and
    `VQGAN.encode` refuses it. Its config says so: `_quantizer` is "gumbel".

    Raises:
        UsageError: these are not weights of a VQGAN of taming-transformers.
        ClipguideError: weights are missing, unknown or of another shape.
    """
    from diffusers import VQModel

    state = {str(name): value for name, value in state.items()}
    if any(name.startswith(FIRST_STAGE) for name in state):
        state = {name: state[name] for name in state if name.startswith(FIRST_STAGE)}
    state = {name.removeprefix(FIRST_STAGE): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith(UNUSED)}
    gumbel = GUMBEL_CODEBOOK in state
    layout = _layout(state, GUMBEL_CODEBOOK if gumbel else CODEBOOK)
    with torch.device("meta"):  # uses no memory, and no global random numbers
        model = VQModel(**layout, norm_num_groups=GROUPS, scaling_factor=1.0)
    model.register_to_config(_quantizer="gumbel" if gumbel else "nearest")
    wanted = model.state_dict()
    names = {name: _original(name, len(layout["block_out_channels"])) for name in wanted}
    if gumbel:
        names[CODEBOOK] = GUMBEL_CODEBOOK
    _check_names(state, names.values())
    weights = {}
    for name, original in names.items():
        value, shape = state[original], wanted[name].shape
        pointwise = value.shape == (*shape, 1, 1)  # a convolution that becomes a linear layer
        if not pointwise and value.shape != shape:
            raise ClipguideError(
                f"The VQGAN's {original} has the shape {tuple(value.shape)}, not {tuple(shape)} as "
                "its other weights have it."
            )
        weights[name] = value.reshape(shape).to(torch.float32, copy=True)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _layout(state: Mapping[str, torch.Tensor], codebook: str) -> dict:
    """Return the arguments of the VQModel with these weights."""
    lacks = [name for name in (*NEEDED, codebook) if getattr(state.get(name), "ndim", 0) < 2]
    if lacks:
        raise UsageError(
            f"This is no VQGAN of taming-transformers: it lacks a usable {_few(lacks)}."
        )

    def there(pattern: str) -> list[str]:
        """Return the names 0, 1, … of a pattern, up to the first that is missing."""
        return list(takewhile(state.__contains__, map(pattern.format, count())))

    def kinds(side: str, plain: str, attentive: str) -> list[str]:
        found = (f"{side}.{level}.attn.0.q.weight" in state for level in range(len(levels)))
        return [attentive if attention else plain for attention in found]

    levels = there("encoder.down.{}.block.0.conv1.weight")
    widths = [state[name].shape[0] for name in levels]
    if any(width % GROUPS for width in widths):
        raise UsageError(
            f"This is no VQGAN of taming-transformers: its widths {widths} are no multiples of "
            f"{GROUPS}, as its group norms need."
        )
    up = kinds("decoder.up", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": len(there("encoder.down.0.block.{}.conv1.weight")),
        "down_block_types": kinds("encoder.down", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": up[::-1],
        "latent_channels": state["encoder.conv_out.weight"].shape[0],
        "num_vq_embeddings": state[codebook].shape[0],
        "vq_embed_dim": state["post_quant_conv.weight"].shape[1],
    }


def _original(name: str, levels: int) -> str:
    """Return the name in taming-transformers of a weight of a VQModel. Its decoder counts levels
    backwards."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)


def _check_names(state: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise ClipguideError if names are missing or unknown."""
    state, wanted = set(state), set(wanted)
    missing, unknown = sorted(wanted - state), sorted(state - wanted)
    if missing or unknown:
        said = [f"lacks {_few(missing)}"] if missing else []
        said += [f"has {_few(unknown)}, of which nothing is known"] if unknown else []
        raise ClipguideError(f"The VQGAN's weights do not fit together: it {' and '.join(said)}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
