"""Load diffusers models, and find the sizes that they draw and their fingerprints."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import __version__, mini
from ..clip import fingerprint, to_device, to_dtype
from ..errors import ClipguideError, ClipguideWarning, UsageError, close_matches, reason
from ..guidance.latents import check
from ..guidance.pipe_parts import denoiser
from ..hub import within_reach
from ..prompts import shorten
from ..sizes import check_size

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .text_to_canvas import TextToCanvas
    from .text_to_image import TextToImage

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "timm")


def load_pipeline(
    model: str, *, device: str = "cpu", dtype: str = "float32", safety_checker: bool = False
) -> DiffusionPipeline:
    """Load a pipeline that can be steered. It reads safetensors only.

    `model` is "mini", a folder or the name of a model. The safety checker is left out, with a
    warning, unless you ask for it.

    Raises:
        UsageError: the name is none of these.
        ClipguideError: the pipeline does not load.
    """
    weights_dtype = to_dtype(dtype)
    to_device(device)
    if model == "mini":
        mini.check("generator")
        source = mini.path("generator")
    elif Path(model).is_dir() or "/" in model:
        source = Path(model) if Path(model).is_dir() else model
    else:
        raise UsageError(f"There is no model {shorten(model)!r}.{close_matches(model, ['mini'])}")
    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise UsageError(f"{source} is not a diffusers folder: it has no model_index.json.")
    try:
        with within_reach(not isinstance(source, Path)):
            pipe = _read(source, weights_dtype, safety_checker)
        check(pipe)
        pipe = pipe.to(device)
    except ClipguideError:
        raise
    # diffusers, transformers, safetensors and json raise different errors
    except Exception as error:
        raise ClipguideError(f"The model {model} cannot be loaded: {reason(error)}.") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _read(source: str | Path, dtype: torch.dtype, safety_checker: bool) -> DiffusionPipeline:
    kind = _pipeline_class(source)
    said = kind.load_config(source).get("safety_checker")  # of two, where the class has one
    without = {"safety_checker": None} if said and not safety_checker else {}
    if without and said[0] is not None:
        warnings.warn(
            f"The safety checker of {source} is left out: give safety_checker=True "
            "(--safety-checker) to keep it.",
            ClipguideWarning,
            stacklevel=4,
        )
    return kind.from_pretrained(source, dtype=dtype, use_safetensors=True, **without)


def _pipeline_class(source: str | Path) -> type[DiffusionPipeline]:
    """Return the class of the embedded generator, or that of diffusers which finds the right class.
    """
    from diffusers import DiffusionPipeline

    if isinstance(source, Path):
        index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
        if index.get("_class_name") == "MiniPipeline":
            from ..mini.pipeline import MiniPipeline

            return MiniPipeline
    return DiffusionPipeline


def load_canvas_model(canvas: str, model: str, *, device: str, dtype: str) -> nn.Module:
    """Return the frozen decoder of the canvas "vqgan" or "latent": that of "mini", of a diffusers
    folder (a pipeline or its autoencoder alone), or of a taming-transformers checkpoint in
    safetensors.

    Raises:
        UsageError: the name is none of these.
        ClipguideError: it does not load.
    """
    import diffusers

    kind = diffusers.VQModel if canvas == "vqgan" else diffusers.AutoencoderKL
    if model == "mini":
        part = "vqgan" if canvas == "vqgan" else "generator"
        mini.check(part)
        folder = mini.path(part)
    else:
        folder = Path(model)
        if not os.path.exists(folder):
            raise UsageError(f"There is no folder {shorten(model)!r}; the canvas's own is mini.")
    if folder.is_file() and canvas == "vqgan":
        if folder.suffix != ".safetensors":
            raise UsageError(
                f"{folder} may be a pickle, which can run code: load it by "
                "clipguide.canvases.load_taming(path, trust_pickle=True), if you trust who made "
                "it, and give the folder that its save_pretrained writes."
            )
        from ..canvases.taming import load_taming

        net = load_taming(folder).to(to_dtype(dtype))
    else:
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        net = _autoencoder(kind, folder, to_dtype(dtype))
    return net.to(to_device(device)).eval().requires_grad_(False)


def _autoencoder(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the autoencoder of a folder. Raise UsageError if it holds another class."""
    import diffusers

    file = folder / "config.json"
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is not a diffusers folder of an autoencoder.") from None
    if kind is diffusers.AutoencoderKL and name == "AutoencoderTiny":
        kind = diffusers.AutoencoderTiny
    if name != kind.__name__:
        raise UsageError(f"{folder} holds a {name}: this canvas takes a {kind.__name__}.")
    try:
        return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except Exception as error:  # diffusers, safetensors and json raise different errors
        raise ClipguideError(f"The model {folder} cannot be loaded: {reason(error)}.") from error


def picture_size(
    pipe: DiffusionPipeline, size: int | tuple[int, int] | None, *, name: str
) -> tuple[int, int]:
    """Return width and height in pixels; None means the size of the model. Raise UsageError if the
    model cannot draw this size."""
    config = denoiser(pipe).config
    own = config.get("sample_size") or getattr(pipe, "default_sample_size", 128)
    own = own if isinstance(own, int) else own[0]
    native = pipe.vae_scale_factor * getattr(pipe, "default_sample_size", own)
    if size is None:
        size = native
    sides = (size, size) if isinstance(size, int) else size
    # a U-Net halves the sides, a transformer makes patches
    blocks = config.get("block_out_channels")
    grain = pipe.vae_scale_factor * (2 ** (len(blocks) - 1) if blocks else 2)
    check_size(name, sides, native=native, grain=grain)
    return sides


def pipeline_fingerprint(pipe: DiffusionPipeline) -> str:
    """Return the sha256 digest of a pipeline's weights."""
    return fingerprint({k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)})


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect the pixels of an image."""
    return {"clipguide": __version__, **_installed()}


@functools.cache
def _installed() -> dict[str, str]:
    """Read their metadata once: this takes milliseconds, and each recipe has the versions."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def made_by(owner: TextToImage | TextToCanvas) -> dict[str, Any]:
    """Return the fields of a recipe that name the models, and what they run on."""
    judge = owner.judge
    return {
        "model": owner.model,
        "model_fingerprint": owner.fingerprint,
        "clip": owner.clip.name,
        "clip_fingerprint": owner.clip.fingerprint,
        "judge": judge.name if judge else "",
        "judge_fingerprint": judge.fingerprint if judge else "",
        "device": owner.device,
        "dtype": owner.dtype,
        "threads": torch.get_num_threads(),
        "libraries": versions(),
    }


def plain_seconds(
    pipe: DiffusionPipeline, steps: int, cfg: float, width: int, height: int
) -> float:
    """Return the time of plain sampling of one image in seconds, estimated from runs of one and
    three steps."""
    seconds = {}
    for some in (1, 1, 3):  # the first run warms up
        start = time.perf_counter()
        pipe(
            prompt=[""],
            num_inference_steps=some,
            guidance_scale=cfg,
            width=width,
            height=height,
            generator=[torch.Generator().manual_seed(0)],
            output_type="pt",
        )
        seconds[some] = time.perf_counter() - start
    return seconds[1] + (steps - 1) * (seconds[3] - seconds[1]) / 2
