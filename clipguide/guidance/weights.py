"""Read the weights of a module from the place where offloading has put them.

A live module may have no weights: accelerate's sequential and disk offload leave tensors on "meta",
and keep the values in a hook's `weights_map`; diffusers' group offload to disk leaves uninitialised
tensors, and keeps the values in a safetensors file. Nothing here moves, loads or changes the live
module, and no hook runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import ClipguideError

COMPILED = "_orig_mod"  # what torch.compile puts between a module and its wrapper


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile wrapped, or the module itself."""
    return getattr(module, COMPILED, module)


def located(module: nn.Module) -> dict[str, tuple[int, Callable[[], torch.Tensor]]]:
    """Return how to read each parameter and buffer, by the name that its class gives it.

    Args:
        module: any module, offloaded, cast or compiled in any way of PyTorch, accelerate or
            diffusers.

    Returns:
        For each name, the number of dimensions and a reader. The tensor that it returns may be on
        any device, in any floating type, and may share memory with the live module.
    """
    on_disk = dict(_grouped(module))
    found = {}
    for path, part, maps in _walk(module, (), ()):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                key = ".".join((*path, name))
                reader = _reader(key, tensor, on_disk, (*path, name), maps)
                found[key] = tensor.ndim, reader
    return found


def parts(module: nn.Module) -> dict[str, nn.Module]:
    """Yield every part by its path in the class, without wrappers of torch.compile."""
    return {".".join(path): part for path, part, _ in _walk(module, (), ())}


def offloaded(module: nn.Module) -> bool:
    """Return whether any hook brings weights in and out as the module runs."""
    return any(hasattr(m, "_hf_hook") or hasattr(m, "_diffusers_hook") for m in module.modules())


def _walk(module: nn.Module, path: tuple[str, ...], maps: tuple) -> Iterator[tuple]:
    """Yield (path, part, weight maps of it and its parents, each with its base path)."""
    module = uncompiled(module)
    maps = maps + tuple((len(path), found) for found in _maps(module))
    yield path, module, maps
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, (*path, name), maps)


def _maps(module: nn.Module) -> list[Mapping[str, torch.Tensor]]:
    """Return where accelerate's hooks on this module keep its weights."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # a hook, or several in a row
    found = (getattr(each, "weights_map", None) for each in hooks)
    return [each for each in found if each is not None]


def _grouped(module: nn.Module) -> Iterator[tuple[int, Callable[[], torch.Tensor]]]:
    """Return readers of what diffusers' group offload keeps elsewhere, by the id of the live
    tensor."""
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if registry else None
        if hook is None:
            continue
        for tensor, kept in hook.group.cpu_param_dict.items():
            yield id(tensor), lambda kept=kept: kept
        file = getattr(hook.group, "safetensors_file_path", None)
        if file and Path(file).is_file():  # from the first time that it was put away
            for tensor, key in hook.group.tensor_to_key.items():
                yield id(tensor), lambda file=file, key=key: _read(file, key)


def _read(file: str, key: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(key)


def _reader(key, tensor, on_disk, path, maps) -> Callable[[], torch.Tensor]:
    if id(tensor) in on_disk:
        return on_disk[id(tensor)]
    if tensor.device.type != "meta":
        return lambda: tensor.detach()

    def read() -> torch.Tensor:
        for depth, kept in reversed(maps):
            try:
                return kept[".".join(path[depth:])].detach()
            except KeyError:
                continue
        raise ClipguideError(
            f"The VAE's weight {key} is on no device and in no hook: load the pipeline again, or "
            "steer by a tiny decoder (decoder='tiny')."
        )

    return read
