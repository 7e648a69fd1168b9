"""Questions to any pipeline: its device, its denoiser, its arguments."""

from __future__ import annotations

import inspect

import torch
from torch import nn

DENOISERS = ("unet", "transformer", "decoder")  # the last is Stable Cascade's


def execution_device(pipe: object) -> torch.device:
    """Return where a pipeline's models run, which under offloading is not where their weights are.
    """
    found = getattr(pipe, "_execution_device", None)
    return torch.device(pipe.device if found is None else found)


def denoiser(pipe: object) -> nn.Module | None:
    """Return the model that a pipeline samples with."""
    return next((getattr(pipe, name) for name in DENOISERS if hasattr(pipe, name)), None)


def call_signature(pipe: object) -> inspect.Signature:
    """Return what a pipeline is called with: of a subclass that passes everything on, by *args, its
    base's arguments."""
    for base in type(pipe).__mro__:
        call = vars(base).get("__call__")
        if call is None:
            continue
        found = inspect.signature(call)
        parameters = list(found.parameters.values())[1:]
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return found.replace(parameters=parameters)
    return inspect.signature(pipe.__call__)
