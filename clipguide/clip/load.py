"""Load CLIPs: `load_clip` loads one or several to use them, `load_parts` one to train or export it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from .. import mini
from ..errors import ClipguideError, UsageError, reason
from ..hub import within_reach
from ..prompts import shorten
from . import checkpoints, hf, openai
from .base import Clip, to_device, to_dtype
from .concepts import with_concept
from .ensemble import Ensemble
from .fingerprint import open_clip_architecture
from .names import MINI, in_cache, is_one, known_tag, members, placed, worded
from .parts import CONFIG, Parts, describe_open_clip, open_clip_config
from .tokens import byte_pairs

OPENAI_IDS = 49408  # file of the tokenizer that open_clip takes by default
KINDS = (".safetensors", ".bin", ".pth")
FIRST = (  # open_clip takes the first of these files of weights
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def load_clip(
    name: str | os.PathLike = "mini",
    *,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    trust_pickle: bool = False,
) -> Clip:
    """Load a CLIP, or several as an `Ensemble`, by name.

    Args:
        name: one of

            - "mini" (the embedded guide) or "mini-judge";
            - a folder of open_clip (an open_clip_config.json and safetensors) or of transformers
              (the config.json of a CLIP, SigLIP or SigLIP 2, safetensors, and the files of its
              processor);
            - a file that OpenAI published: a state dict, or with `trust_pickle` a JIT archive;
            - the name on the hub of a CLIP or SigLIP of transformers that is already in the cache,
              such as "openai/clip-vit-base-patch32";
            - an open_clip architecture and a checkpoint that its training wrote, such as
              "ViT-B-32/logs/epoch_5.pt";
            - an open_clip architecture and tag such as "ViT-B-32/laion2b_s34b_b79k", or "hf-hub:"
              and the name of an open_clip model on the hub. open_clip downloads what is not in the
              cache;
            - one of these followed by "@device:dtype", which overrides the arguments:
              `mini@cuda:0:bfloat16`, `mini@cpu` or `mini@:float16`;
            - several of these with + between them. A weight and an asterisk may stand before each:
              `0.7*mini+0.3*mini-judge@:bfloat16`.

            After each CLIP, `~` and a file add a word that the CLIP has learned, as in
            `mini~blorvek.safetensors@cpu` (see `Inversion`). Several words may follow. A path that
            exists is taken literally, whatever characters it contains.
        device: a device as torch names it.
        dtype: float32, float16, bfloat16 or float64.
        trust_pickle: whether weights in a pickle may be read.

    Returns:
        A frozen Clip in evaluation mode.

    Raises:
        UsageError: the name is none of these, or the weights are a pickle without `trust_pickle`.
        ClipguideError: the CLIP does not load.
    """
    dtype = str(to_dtype(dtype)).removeprefix("torch.")
    device = str(to_device(device))
    name = os.fspath(name)
    settings = {"device": device, "dtype": dtype, "trust_pickle": trust_pickle}
    with torch.inference_mode(False):  # otherwise it would not take part in gradients
        return _load_all(name, settings)


def check_clip(name: object, *, trust_pickle: bool = False) -> None:
    """Raise UsageError for a name that `load_clip` does not take. Nothing is loaded, so a pipeline
    can check first. A Clip or None passes."""
    if not isinstance(name, (str, os.PathLike)):
        return
    for one in members(os.fspath(name))[1]:
        source, *_ = worded(placed(one, "cpu", "float32")[0])
        _found(source, one, trust_pickle=trust_pickle)


def _load_all(name: str, settings: dict[str, object]) -> Clip:
    """Load one CLIP or an ensemble."""
    weights, names = members(name)
    if not weights:
        return _load(name, **settings)
    return Ensemble([_load(one, **settings) for one in names], weights=weights, name=name)


def load_parts(
    name: str | os.PathLike = "mini", *, device: str = "cpu", trust_pickle: bool = False
) -> Parts:
    """Load the parts of one CLIP, in float32 and in evaluation mode, to train or export them.

    In evaluation mode, batch norms keep their statistics. `name` is any name that `load_clip`
    takes, except an ensemble.

    Raises:
        UsageError: as `load_clip`; or the name is an ensemble, which is not a single model.
    """
    name = os.fspath(name)
    if not is_one(name):
        raise UsageError(f"{shorten(name)!r} are several CLIPs: name one.")
    source, device, _ = placed(name, device, "float32")
    if len(worded(source)) > 1:
        raise UsageError(
            f"Only a frozen CLIP reads learned words: leave out what is behind the ~ of "
            f"{shorten(name)!r}."
        )
    to_device(device)
    parts = _found(source, name, trust_pickle=trust_pickle)()
    if parts.preprocess["resize_mode"] == "patches":
        raise UsageError(
            f"{shorten(name)!r} is a SigLIP 2 of flexible resolution (NaFlex), which clipguide "
            "reads, but neither trains nor exports: choose one of fixed resolution."
        )
    parts.model.float().eval()
    return parts.to(device)


def _load(name: str, *, device: str, dtype: str, trust_pickle: bool) -> Clip:
    """Load one CLIP by its name."""
    source, device, dtype = placed(name, device, dtype)
    source, *words = worded(source)
    parts = _found(source, name, trust_pickle=trust_pickle)()
    try:
        clip = parts.clip(device=device, dtype=dtype, keep=False)
    except AttributeError as error:
        raise _does_not_load(name, error) from error
    return with_concept(clip, *words) if words else clip


def _found(source: str, name: str, *, trust_pickle: bool) -> Callable[[], Parts]:
    """Return the function that loads a CLIP with this name. Raise UsageError if there is none."""
    path = Path(source)
    if source in MINI:
        return partial(_embedded, MINI[source], name=name)
    if os.path.isfile(source):
        return partial(openai.from_file, path, trust_pickle=trust_pickle, name=name)
    if os.path.isdir(source):
        if not (path / CONFIG).exists() and (path / "config.json").exists():
            return partial(hf.from_folder, path, trust_pickle=trust_pickle, name=name)
        _check_folder(path, trust_pickle=trust_pickle)
        return partial(_open_clip, f"local-dir:{source}", name=name)
    if source.startswith("hf-hub:"):
        return partial(_open_clip, source, name=name)
    if trained := checkpoints.named(source):
        return partial(checkpoints.from_checkpoint, *trained, name=name)
    if cached := in_cache(source):
        return partial(hf.from_folder, cached, trust_pickle=trust_pickle, name=name)
    return partial(_open_clip, *known_tag(source), name=name)


def _embedded(part: str, *, name: str) -> Parts:
    mini.check(part)
    return _open_clip(f"local-dir:{mini.path(part)}", name=name)


def _open_clip(source: str, tag: str | None = None, *, name: str) -> Parts:
    import open_clip

    local = source.startswith("local-dir:")
    files = Path(source.removeprefix("local-dir:")) if local else None
    try:
        with within_reach(not local):
            model, transform = open_clip.create_model_from_pretrained(source, tag)
            tokenizer = byte_pairs(files) if files else None
            if tokenizer is None:
                tokenizer = open_clip.get_tokenizer(source)
        config = open_clip_config(source, model)
        describe = describe_open_clip(config, tokenizer, files)
        architecture = open_clip_architecture(config["model_cfg"])
        return Parts(model, transform, tokenizer, name, describe, architecture)
    except ClipguideError:
        raise
    except Exception as error:  # open_clip, safetensors and json raise different errors
        raise _does_not_load(name, error) from error


def _does_not_load(name: str, error: Exception) -> ClipguideError:
    if "loading state_dict" in str(error) or isinstance(error, AttributeError):
        return ClipguideError(
            f"The weights of {name} are not those of the model that its configuration "
            f"describes: {reason(error)}."
        )
    return ClipguideError(f"The CLIP {name} cannot be loaded: {reason(error)}.")


def _check_folder(folder: Path, *, trust_pickle: bool) -> None:
    """Raise UsageError if open_clip would not load this folder, or only with the wrong tokenizer.
    """
    try:
        text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is no folder of a CLIP: it has no {CONFIG}, and no config.json of "
            "transformers."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / CONFIG} is not the configuration of a CLIP.") from None
    found = [file.name for kind in KINDS for file in sorted(folder.glob(f"*{kind}"))]
    taken = next((file for file in (*FIRST, *found) if file in found), None)
    if taken is None:
        raise UsageError(f"{folder} has no weights in a .safetensors file, which clipguide reads.")
    if not taken.endswith(".safetensors") and not trust_pickle:
        raise UsageError(
            f"Of the weights in {folder}, open_clip reads {taken}, which is a pickle: give "
            "trust_pickle=True (--trust-pickle) if you trust where it is from."
        )
    if not text.get("hf_tokenizer_name") and text.get("vocab_size", OPENAI_IDS) != OPENAI_IDS:
        raise UsageError(
            f"{folder / CONFIG} names no tokenizer, so open_clip would take its own of "
            f"{OPENAI_IDS} ids: set text_cfg.hf_tokenizer_name."
        )
