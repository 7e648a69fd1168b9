"""Run a pipeline with gradients through its denoiser."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from ..errors import ClipguideError
from .pipe_parts import denoiser

PROCESSORS = {"image_processor": "postprocess", "video_processor": "postprocess_video"}


def check(pipe: object) -> None:
    """Raise ClipguideError if there is no gradient through this pipeline's denoiser."""
    model = denoiser(pipe)
    if getattr(model, "is_cache_enabled", False):
        raise ClipguideError(
            f"The cache of {type(pipe).__name__} skips what a gradient has to go through: call "
            "disable_cache() first, or use shortcut."
        )
    if isinstance(model, nn.Module) and any(p.is_inference() for p in model.parameters()):
        raise ClipguideError(
            f"{type(pipe).__name__} was loaded in inference mode, where there are no gradients: "
            "load it outside, or use shortcut."
        )


@contextlib.contextmanager
def through_denoiser(pipe: object) -> Iterator[None]:
    """Open a context in which gradients go through the denoiser, with checkpointing if the denoiser
    supports it, and not to weights. The outputs of the pipeline's decoder are outside the graph."""
    check(pipe)
    parts = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    trainable = [
        (module, name)  # sequential offloading replaces the parameter at each move
        for part in parts
        for module in part.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    model = denoiser(pipe)
    with contextlib.ExitStack() as stack:
        for module, name in trainable:
            getattr(module, name).requires_grad_(False)
            stack.callback(_learns, module, name)
        checkpoint = getattr(model, "_supports_gradient_checkpointing", False)
        if checkpoint and not model.is_gradient_checkpointing:
            model.enable_gradient_checkpointing()
            stack.callback(model.disable_gradient_checkpointing)
        modules = model.modules() if isinstance(model, nn.Module) else ()
        if any(hasattr(module, "_hf_hook") for module in modules):
            # A checkpointed part runs to its end again, where offloading moves the weights away.
            stack.enter_context(set_checkpoint_early_stop(False))
        for name, method in PROCESSORS.items():
            if hasattr(pipe, name):
                stack.enter_context(_detaching(getattr(pipe, name), method))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _learns(module: nn.Module, name: str) -> None:
    getattr(module, name).requires_grad_(True)


@contextlib.contextmanager
def _detaching(processor: object, method: str) -> Iterator[None]:
    """Return the method with tensors that are detached from the graph."""
    original, own = getattr(processor, method), vars(processor).get(method)

    @functools.wraps(original)
    def detached(*args: object, **kwargs: object) -> object:
        kwargs = {name: _detached(value) for name, value in kwargs.items()}
        return original(*map(_detached, args), **kwargs)

    setattr(processor, method, detached)
    try:
        yield
    finally:
        delattr(processor, method)
        if own is not None:
            setattr(processor, method, own)


def run(pipe: object, settings: dict[str, object]) -> object:
    """Run the pipeline once with gradients. Return its result, without gradients."""
    call = type(pipe).__call__
    with through_denoiser(pipe):
        output = getattr(call, "__wrapped__", call)(pipe, **settings)  # without its no_grad
    if isinstance(output, tuple):
        return tuple(_detached(part) for part in output)
    for name in ("images", "frames"):
        if hasattr(output, name):
            setattr(output, name, _detached(getattr(output, name)))
    return output


def _detached(value: object) -> object:
    return value.detach() if isinstance(value, torch.Tensor) else value
