"""Make a clean differentiable decoder: a module with the class, configuration and weights of the
VAE.

The module is new, not a copy of the live one, so it has none of its changes: hooks of offloading
and casting, compiled methods, tiling, slicing, wrappers. It has only the half that decodes. It is
in evaluation mode, and its weights have no gradients.
"""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..errors import ClipguideError
from .precision import without_autocast
from .weights import located, offloaded, parts, uncompiled

ENCODING = ("encoder", "quant_conv")  # parts that only encode


@dataclass(frozen=True)
class Made:
    """The recipe of a module: its class, and its configuration as JSON."""

    kind: type
    config: str

    @classmethod
    def of(cls, vae: nn.Module) -> Made:
        """Return the recipe of a live VAE. Raise ClipguideError if the module cannot be made again.
        """
        vae = uncompiled(vae)
        if not hasattr(vae, "config"):
            raise ClipguideError(
                f"The VAE is a {type(vae).__name__}, which is no model of diffusers': hand a "
                "function of latents as `decoder`, or an AutoencoderTiny as `tiny`."
            )
        names = inspect.signature(type(vae).__init__).parameters
        config = {name: value for name, value in vae.config.items() if name in names}
        return cls(type(vae), json.dumps(config, sort_keys=True, default=list))

    def bare(self) -> nn.Module:
        """Return the half that decodes, for inference, without values (on "meta")."""
        with torch.inference_mode(False), torch.device("meta"):
            made = self.kind(**json.loads(self.config))
        return _decoding_half(made)


def _decoding_half(made: nn.Module) -> nn.Module:
    for name in ENCODING:
        if isinstance(getattr(made, name, None), nn.Module):
            setattr(made, name, None)
    for part in made.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)) and not isinstance(part.padding, str):
            part._conv_forward = _Sparing(part)
    return made.eval().requires_grad_(False)


def _structure(live: nn.Module) -> nn.Module:
    """Return the decoding half of a module without a configuration, such as ComfyUI's: its parts
    are copied without values, hooks and replaced forward methods."""
    tensors = [t for part in live.modules() for t in _own_tensors(part)]
    with torch.inference_mode(False):
        empty = {id(t): torch.empty(t.shape, dtype=t.dtype, device="meta") for t in tensors}
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                empty[id(tensor)] = nn.Parameter(empty[id(tensor)], requires_grad=False)
        made = copy.deepcopy(live, empty)
    for part in made.modules():
        part.__dict__.pop("forward", None)
        for name, value in vars(part).items():
            if name.endswith("_hooks"):
                value.clear()
    return _decoding_half(made)


def _own_tensors(part: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]


def clean(vae: nn.Module, device: torch.device | str) -> nn.Module:
    """Return the decoding half of a live VAE, of diffusers' or, as far as its parts can be copied,
    of others', whole, on `device`, in float32 (float64 stays).

    Weights that are in float32 on that device, without a hook that could move them, are shared.
    This is safe: the clean module has its own parameters, so requires_grad, dtype and device are
    its own, and nothing here writes to a weight.

    Raises:
        ClipguideError: a weight is missing, quantised, or of another shape than its class makes it.
    """
    live = uncompiled(vae)
    made = Made.of(vae).bare() if hasattr(live, "config") else _structure(live)
    readers, hooked = located(live), offloaded(live)
    with torch.inference_mode(False), torch.no_grad():
        for path, part in made.named_modules():
            for table in (part._parameters, part._buffers):
                for name, slot in table.items():
                    if slot is None:
                        continue
                    key = f"{path}.{name}" if path else name
                    value = _value(key, slot, readers, device, hooked)
                    table[name] = (
                        nn.Parameter(value, requires_grad=False)
                        if isinstance(slot, nn.Parameter)
                        else value
                    )
    _padded_alike(made, live)
    return made


def _value(key, slot, readers, device, hooked) -> torch.Tensor:
    if key not in readers:
        raise ClipguideError(
            f"The VAE lacks the weight {key} that its class has; an adapter or a quantised layer "
            "stands in its place: merge it, or steer by a tiny decoder (decoder='tiny')."
        )
    value = readers[key][1]()
    if value.shape != slot.shape or value.is_floating_point() != slot.is_floating_point():
        raise ClipguideError(
            f"The VAE's weight {key} is {value.dtype} of shape {tuple(value.shape)}, and its class "
            f"has {tuple(slot.shape)}: where it is quantised, load the VAE unquantised, or steer "
            "by a tiny decoder (decoder='tiny')."
        )
    dtype = value.dtype
    if value.is_floating_point() and dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    moved = value.to(device=device, dtype=dtype)
    if moved.is_inference() or (hooked and moved.data_ptr() == value.data_ptr()):
        moved = moved.clone()
    return moved


def _padded_alike(made: nn.Module, live: nn.Module) -> None:
    """Copy circular padding to the clean convolutions, which images that tile need."""
    originals = parts(live)
    for path, part in made.named_modules():
        padding = getattr(originals.get(path), "padding_mode", "zeros")
        if padding != getattr(part, "padding_mode", "zeros"):
            part.padding_mode = padding
            part.__dict__.pop("_conv_forward", None)


class _Sparing:
    """The `_conv_forward` of a convolution whose weights need no gradient.

    PyTorch always keeps the input of a convolution for the gradient of its weights. This is a third
    of the memory that a decoder keeps.
    """

    def __init__(self, part: nn.Conv2d | nn.Conv3d) -> None:
        self.settings = part.stride, part.padding, part.dilation, part.groups

    def __call__(self, x, weight, bias):
        return _Convolution.apply(x, weight, bias, *self.settings)


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient is a transposed convolution. `nn.grad.conv2d_input` returns the
    same bits, but on a CPU it fills an input of which it needs only the shape."""

    @staticmethod
    def forward(ctx, x, weight, bias, *settings):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        convolution = nn.functional.conv2d if x.ndim == 4 else nn.functional.conv3d
        return convolution(x, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        sides = zip(ctx.shape[2:], slope.shape[2:], weight.shape[2:], stride, padding, dilation)
        beyond = [  # pixels that no output reaches because of the stride
            side - ((out - 1) * step - 2 * pad + wide * (kernel - 1) + 1)
            for side, out, kernel, step, pad, wide in sides
        ]
        two = len(ctx.shape) == 4
        transposed = nn.functional.conv_transpose2d if two else nn.functional.conv_transpose3d
        # the backward pass uses the autocast that is on when it runs
        with without_autocast(slope.device):
            gradient = transposed(slope, weight, None, stride, padding, beyond, groups, dilation)
        return gradient, *[None] * 6
