"""Every method × type × task × way of running, on tiny models: a sample here, all when slow.

In each cell strength 0 changes no bit, the objective falls (but for rollover, which draws noise of
its own), a second run gives the same bits, and the pipeline is afterwards as it was: parameters,
hooks, scheduler, types, devices.

Shapes: B images.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import diffusers
import pytest
import torch
from test_methods import Brightness
from tiny_pipelines import BATCH, BETAS, tiny

from clipguide.errors import ClipguideError
from clipguide.guidance import (
    Backprop,
    BestOf,
    Drafts,
    Embedding,
    Lookahead,
    Noise,
    Particles,
    Rollover,
    Shortcut,
    steer,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

METHODS = {  # what is tried, and what of it must change no bit
    "shortcut": (Shortcut(strength=0.3), Shortcut(strength=0.0)),
    "shortcut, noise fixed": (Shortcut(strength=0.1, fixed="noise"), Shortcut(strength=0.0)),
    "travel": (Shortcut(strength=0.3, travel=2), None),
    "best-of": (BestOf(number=3), BestOf(number=1)),
    "particles": (Particles(number=2, sharpness=1e4, every=1), None),
    "rollover": (Rollover(quota=4), None),
    "lookahead": (Lookahead(number=3, steps=4), Lookahead(number=2, steps=4, scale=0.0)),
    "noise": (Noise(iterations=2, rate=0.2), None),
    "drafts": (Drafts(number=2, iterations=2, rate=0.3), Drafts(rate=0.0)),
    "backprop": (Backprop(strength=0.3), Backprop(strength=0.0)),
    "backprop, both": (Backprop(strength=0.2, mu=0.5, inner=2), Backprop(strength=0.0)),
    "embedding": (Embedding(rate=0.5), Embedding(rate=0.0)),
    "embedding, null": (Embedding(rate=0.5, of="null"), Embedding(rate=0.0, of="null")),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TASKS = {
    "text to image": ("SD 1.5", {}),
    "image to image": ("SD image to image", {}),
    "inpainting": ("SD inpainting", {}),
    "SDXL denoising_end": ("SDXL", {"denoising_end": 0.6}),
}
MODES = (
    "plain",
    "model offload",
    "sequential offload",
    "group offload",
    "inference_mode",
    "autocast",
    "compiled VAE",
)
# What does not go together, and the sentence that says so, before anything is drawn.
REFUSED = {
    ("noise", "image to image"): "takes no `latents`",
    ("noise", "inpainting"): "begins with the image",
    ("travel", "image to image"): "skips steps",
    ("travel", "inpainting"): "skips steps",
    ("rollover", "image to image"): "skips steps",
    ("rollover", "inpainting"): "skips steps",
}

ALL = list(itertools.product(METHODS, DTYPES, TASKS, MODES))
QUICK = [
    *(  # each method with each task and with each type
        (method, list(DTYPES)[(i + j) % len(DTYPES)], task, "plain")
        for i, method in enumerate(METHODS)
        for j, task in enumerate(TASKS)
    ),
    *(("shortcut", "float32", "text to image", mode) for mode in MODES if mode != "compiled VAE"),
    *(("backprop", "float32", "inpainting", mode) for mode in ("inference_mode", "autocast")),
    *(("particles", "bfloat16", "image to image", mode) for mode in ("model offload", "autocast")),
    ("backprop", "float32", "SDXL denoising_end", "sequential offload"),
    ("noise", "float32", "text to image", "sequential offload"),
    ("drafts", "float32", "text to image", "sequential offload"),
    *(("embedding", "bfloat16", "text to image", mode) for mode in ("group offload", "autocast")),
]


def prepared(task: str, dtype: torch.dtype, mode: str):
    """The pipeline of a task, run by DDIM, and its settings."""
    name, more = TASKS[task]
    pipe, given = tiny(name)
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **BETAS)
    pipe.to(dtype)
    given = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and "embeds" in key else value
        for key, value in given.items()
    }
    if mode == "model offload":
        from accelerate import cpu_offload_with_hook

        for model in (pipe.unet, pipe.vae):
            cpu_offload_with_hook(model, torch.device("cpu"))
    if mode == "sequential offload":
        from accelerate import cpu_offload

        for model in (pipe.unet, pipe.vae):
            cpu_offload(model, execution_device=torch.device("cpu"))
    if mode == "group offload":
        for model in (pipe.unet, pipe.vae):
            model.enable_group_offload(
                onload_device=torch.device("cpu"), offload_type="leaf_level"
            )
    if mode == "compiled VAE":
        pipe.vae.compile()
    return pipe, {**given, **more, "num_inference_steps": 4, "output_type": "pt"}


def running(mode: str, dtype: torch.dtype):
    """What the pipeline runs under: a model in float16 under autocast to that, for autocast to
    bfloat16 on the CPU knows no float16, steered or not."""
    if mode == "inference_mode":
        return torch.inference_mode()
    if mode == "autocast":
        half = torch.float16 if dtype == torch.float16 else torch.bfloat16
        return torch.autocast("cpu", dtype=half)
    return contextlib.nullcontext()


def state(pipe) -> dict:
    """What must be as it was."""
    found = {"keys": set(vars(pipe)), "scheduler": (id(pipe.scheduler), set(vars(pipe.scheduler)))}
    for name in ("unet", "vae"):
        model = getattr(pipe, name)
        found[name] = [
            (key, p.requires_grad, p.dtype, p.device) for key, p in model.named_parameters()
        ]
        found[f"{name} hooks"] = [
            (key, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
            for key, m in model.named_modules()
        ]
        found[f"{name} checkpoints"] = getattr(model, "is_gradient_checkpointing", False)
    return found


def draw(call, given: dict, seed: int = 3) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(seed + i) for i in range(BATCH)]
    return call(**given, generator=generator).images.float()


def check(method: str, dtype: str, task: str, mode: str) -> None:
    """One cell."""
    config, idle = METHODS[method]
    pipe, given = prepared(task, DTYPES[dtype], mode)
    if said := REFUSED.get((method, task)):
        with pytest.raises(ClipguideError, match=said):
            with steer(pipe, Brightness(), method=config) as s:
                draw(s, given)
        return
    with running(mode, DTYPES[dtype]):
        plain = draw(pipe, given)
        before = state(pipe)
        if idle is not None:
            with steer(pipe, Brightness(), method=idle) as s:
                assert torch.equal(draw(s, given), plain)
        with steer(pipe, Brightness(), method=config) as s:
            image = draw(s, given)
            assert torch.equal(draw(s, given), image)
    assert state(pipe) == before
    assert image.isfinite().all() and s.report.skipped == 0
    if method == "particles":  # they draw noise: against the same without weights
        loose = replace(config, sharpness=0.0)
        with running(mode, DTYPES[dtype]), steer(pipe, Brightness(), method=loose) as s:
            assert Brightness()(image).mean() <= Brightness()(draw(s, given)).mean()
    elif method != "rollover":  # whose noise two samples do not outweigh: see test_rollover.py
        assert Brightness()(image).mean() < Brightness()(plain).mean()
    with running(mode, DTYPES[dtype]):
        assert torch.equal(draw(pipe, given), plain)


def cells(chosen) -> list:
    return [pytest.param(*cell, id=" ".join(cell)) for cell in chosen]


@pytest.mark.parametrize(("method", "dtype", "task", "mode"), cells(QUICK))
def test_sample(method, dtype, task, mode):
    check(method, dtype, task, mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "dtype", "task", "mode"), cells(cell for cell in ALL if cell not in QUICK)
)
def test_all(method, dtype, task, mode):
    check(method, dtype, task, mode)
