"""Compute a digest of everything that affects an image. Equal digests mean equal images.

It covers numbers, texts, tensors, arrays, PIL images, modules (their weights and class), frozen
configs, plain objects by their attributes, and functions by their code and closures. Anything else,
such as an open file, is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import sys
import types
import weakref
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..clip import Clip
from ..errors import UsageError
from ..rewards import Reward

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_PLAIN = (str, bytes, int, float, complex, bool, type(None), PurePath, torch.dtype, torch.device)


def digest(*things: object) -> str:
    """Return the sha256 digest of things, in hexadecimal. Raise UsageError if one of them has no
    digest."""
    hashed = hashlib.sha256()
    for thing in things:
        _feed(hashed, thing, {})
    return hashed.hexdigest()


def _feed(hashed, thing: object, seen: dict[int, object]) -> None:
    """Add one thing to the hash. `seen` holds the objects that contain it."""
    say = lambda *words: hashed.update("\0".join(map(str, words)).encode() + b"\1")  # noqa: E731
    if isinstance(thing, _PLAIN) or isinstance(thing, enum.Enum):
        return say(type(thing).__name__, repr(thing))
    if id(thing) in seen:
        return say("again", list(seen).index(id(thing)))
    seen = {**seen, id(thing): thing}
    say(type(thing).__module__, type(thing).__qualname__)
    if isinstance(thing, Clip):
        return say(thing.fingerprint, thing.dtype)
    if isinstance(thing, Reward):
        say(thing.asked, thing.fingerprint)
        return _feed(hashed, (thing.prompts, thing.settings.question), seen)
    if isinstance(thing, torch.Tensor):
        return _feed_tensor(hashed, thing)
    if isinstance(thing, np.ndarray):
        return _feed_tensor(hashed, torch.from_numpy(np.ascontiguousarray(thing)))
    if isinstance(thing, Image.Image):
        say(thing.mode, thing.size)
        return hashed.update(thing.tobytes())
    if isinstance(thing, torch.Generator):
        return _feed_tensor(hashed, thing.get_state())
    if isinstance(thing, nn.Module):
        say(_of_weights(thing))
        thing = attributes(thing)
    for part in _parts(thing):
        _feed(hashed, part, seen)
    return None


_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[list, str]] = weakref.WeakKeyDictionary()


def _of_weights(module: nn.Module) -> str:
    """Return the sha256 digest of a module's weights. It is reused while their marks are equal."""
    state = sorted(module.state_dict().items())
    marks = [(name, *_mark(value)) for name, value in state]
    before, known = _KNOWN.get(module, (None, ""))
    if before is None or before != marks:
        hashed = hashlib.sha256()
        for name, value in state:
            hashed.update(name.encode() + b"\1")
            _feed(hashed, value, {})
        known = hashed.hexdigest()
        _KNOWN[module] = marks, known
    return known


def attributes(module: nn.Module) -> dict[str, object]:
    """Return the public attributes of a module and its parts that are plain values, such as the
    scales of LoRA layers and those of FreeU, by their names."""
    return {
        f"{name}.{key}": value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if not key.startswith("_") and _is_plain(value)
    }


def _globals(function: types.FunctionType) -> dict[str, object]:
    """Return the global variables that a function reads: plain values, tensors, arrays, and other
    functions of its module."""
    values = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {
        name: value
        for name, value in values.items()
        if _is_plain(value)
        or isinstance(value, (torch.Tensor, np.ndarray))
        or (isinstance(value, types.FunctionType) and value.__module__ == function.__module__)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def marks(module: nn.Module) -> list[tuple]:
    """Return what tells in a moment whether a module's weights have changed: of each its name,
    type, shape and the sum of its bits, which stay the same where it is moved. UsageError for
    weights that are offloaded."""
    found = []
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            dtype, shape, _, _, bits = _mark(value) if not value.is_meta else _refuse()
            found.append((name, dtype, tuple(shape), bits))
    return found


def _mark(value: object) -> tuple:
    """Return a mark of a weight without moving it to the CPU: its address, its version, and the sum
    of its bits, because writes through `.data` are not counted."""
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return (digest(value),)
    version = 0 if value.is_inference() else value._version
    whole = torch.view_as_real(value) if value.is_complex() else value
    bits = whole.detach().view(_BITS[whole.element_size()])
    return value.dtype, value.shape, value.data_ptr(), version, int(bits.sum(dtype=torch.int64))


def _parts(thing: object) -> list[object]:
    """Return the parts of a thing. Raise UsageError for an unknown type."""
    if isinstance(thing, Mapping):
        return [part for key in sorted(thing, key=repr) for part in (key, thing[key])]
    if isinstance(thing, (list, tuple)):
        return [len(thing), *thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(thing, key=repr)
    if isinstance(thing, type):
        return [thing.__module__, thing.__qualname__]
    if isinstance(thing, types.CodeType):
        return [thing.co_code, thing.co_names, thing.co_consts]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return [thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells, _globals(thing)]
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__]
    if dataclasses.is_dataclass(thing):
        return [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    if _of_python(type(thing)) and hasattr(thing, "__dict__"):
        return [vars(thing)]
    raise UsageError(
        f"A {type(thing).__name__} cannot be compared with that of another run, so that no tape "
        "can be kept of it: leave `tape` out."
    )


def _of_python(kind: type) -> bool:
    """Return whether a class is written in Python, so that its attributes describe its objects."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return kind.__module__ == "__main__" or file.endswith((".py", ".pyc"))


def _refuse() -> tuple:
    raise UsageError("Weights that are offloaded have no digest: leave `tape` out.")


def _feed_tensor(hashed, tensor: torch.Tensor) -> None:
    hashed.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.is_meta:
        _refuse()
    data = tensor.detach().cpu().contiguous()
    if data.numel():
        hashed.update(data.reshape(-1).view(torch.uint8).numpy())
