"""Use another scheduler or other LoRA adapters for a while. Afterwards the pipeline is as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..errors import ClipguideError, UsageError, close_matches
from . import schedulers
from .pipe_parts import denoiser
from .tap import tap


@contextlib.contextmanager
def scheduler(
    pipe: object, name: str, *, on_timesteps: Callable, on_step: Callable
) -> Iterator[None]:
    """Open a context in which the pipeline has a tapped scheduler of this class of diffusers, such
    as LCMScheduler, with the configuration of the pipeline's scheduler. Raise UsageError if the
    class cannot be steered, or is not one of diffusers."""
    import diffusers

    schedulers.SCHEDULERS.find(name)
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise UsageError(f"diffusers has no scheduler {name}: name one of its own.")
    kept = pipe.scheduler
    object.__setattr__(pipe, "scheduler", kind.from_config(kept.config))
    try:
        schedulers.check(pipe.scheduler)
        with tap(pipe, on_timesteps=on_timesteps, on_step=on_step):
            yield
    finally:
        object.__setattr__(pipe, "scheduler", kept)


@contextlib.contextmanager
def adapter(pipe: object, name: str | None, *, active: bool = True) -> Iterator[None]:
    """Open a context in which an adapter of the denoiser is active in addition to the others, or is
    not active. Raise ClipguideError if it was not loaded."""
    if name is None:
        yield
        return
    model, before = denoiser(pipe), adapters(pipe)
    known = getattr(model, "peft_config", None) or {}
    if name not in known:
        raise ClipguideError(
            f"The denoiser has no LoRA adapter {name!r}: load it first, by "
            f"load_lora_weights(…, adapter_name={name!r}).{close_matches(name, known)}"
        )
    _activate(model, [other for other in before if other != name] + [name] * active)
    try:
        yield
    finally:
        _activate(model, before)


def adapters(pipe: object) -> list[str]:
    """Return the denoiser's LoRA adapters that are active."""
    model = denoiser(pipe)
    if not getattr(model, "peft_config", None) or not getattr(model, "_hf_peft_config_loaded", 0):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    if not layers or layers[0].disable_adapters:
        return []
    return list(layers[0].active_adapters)


def _activate(model: object, names: list[str]) -> None:
    """Activate these adapters with their present scales."""
    if names:
        model.enable_adapters()
        model.set_adapter(names)
    else:
        model.disable_adapters()
