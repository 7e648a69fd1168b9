"""`load_clip`: a CLIP by its name, its folder or its file, or several as an ensemble; `load_parts`:
one of them, to be trained or exported."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

import torch

from .. import mini
from ..errors import ClipguideError, UsageError, reason
from ..prompts import shorten
from . import checkpoints, hf, openai
from .base import Clip, to_device, to_dtype
from .concepts import with_concept
from .ensemble import Ensemble
from .fingerprint import open_clip_architecture
from .parts import CONFIG, Parts, describe_open_clip, open_clip_config

MINI = {"mini": "guide", "mini-judge": "judge"}
OPENAI_IDS = 49408  # of the tokenizer that open_clip takes by default
KINDS = (".safetensors", ".bin", ".pth")
FIRST = (  # the file of weights that open_clip takes of several, if it has one of these names
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
              "mini@cuda:0:bfloat16", "mini@cpu" or "mini@:float16";
            - several of these with + between them. A weight and * may stand before each:
              "0.7*mini+0.3*mini-judge@:bfloat16".

            After each CLIP, ~ and a file add a word that the CLIP has learned, as in
            "mini~blorvek.safetensors@cpu" (`finetune.inversion`). More than one may follow. A path
            that exists is taken literally, whatever characters it contains.
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
    with torch.inference_mode(False):  # else it took no part in gradients
        return _load_all(name, settings)


def _load_all(name: str, settings: dict[str, object]) -> Clip:
    """One CLIP or an ensemble."""
    if _is_one(name):
        return _load(name, **settings)
    weights, names = zip(*map(_weighed, name.split("+")), strict=True)
    if len(names) == 1:
        raise UsageError(f"{shorten(name)!r} gives a weight to one CLIP alone: leave it out.")
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
    if not _is_one(name):
        raise UsageError(f"{shorten(name)!r} are several CLIPs: name one.")
    source, device, _ = _placed(name, device, "float32")
    if len(_words(source)) > 1:
        raise UsageError(
            f"Only a frozen CLIP reads learned words: leave out what is behind the ~ of "
            f"{shorten(name)!r}."
        )
    to_device(device)
    parts = _parts(source, name, trust_pickle=trust_pickle)
    if parts.preprocess["resize_mode"] == "patches":
        raise UsageError(
            f"{shorten(name)!r} is a SigLIP 2 of flexible resolution (NaFlex), which clipguide "
            "reads, but neither trains nor exports: take one of fixed resolution."
        )
    parts.model.float().eval()
    return parts.to(device)


def lasting_name(name: str) -> str:
    """A name with its paths made absolute, so that it loads the same CLIP from any folder."""
    if os.path.exists(name) and name not in MINI:
        return os.path.abspath(name)
    if not _is_one(name):
        members = (member.strip().rpartition("*") for member in name.split("+"))
        return "+".join(f"{w}{star}{lasting_name(one)}" for w, star, one in members)
    source, at, suffix = name.rpartition("@") if "@" in name else (name, "", "")
    return "~".join(map(_lasting, _words(source))) + at + suffix


def _lasting(word: str) -> str:
    if word in MINI:
        return word
    if os.path.exists(word):
        return os.path.abspath(word)
    trained = checkpoints.named(word)
    return f"{trained[0]}/{os.path.abspath(trained[1])}" if trained else word


def _load(name: str, *, device: str, dtype: str, trust_pickle: bool) -> Clip:
    """A CLIP by a name that is no ensemble's."""
    source, device, dtype = _placed(name, device, dtype)
    source, *words = _words(source)
    parts = _parts(source, name, trust_pickle=trust_pickle)
    try:
        clip = parts.clip(device=device, dtype=dtype, keep=False)
    except AttributeError as error:
        raise _does_not_load(name, error) from error
    return with_concept(clip, *words) if words else clip


def _words(source: str) -> list[str]:
    """The CLIP of "mini~a.safetensors~b.safetensors", and the files of its words."""
    if os.path.exists(source) or not source.partition("~")[0]:
        return [source]
    return source.split("~")


def _parts(source: str, name: str, *, trust_pickle: bool) -> Parts:
    path = Path(source)
    if source in MINI:
        mini.check(MINI[source])
        return _open_clip(f"local-dir:{mini.path(MINI[source])}", name=name)
    if os.path.isfile(source):
        return openai.from_file(path, trust_pickle=trust_pickle, name=name)
    if os.path.isdir(source):
        if not (path / CONFIG).exists() and (path / "config.json").exists():
            return hf.from_folder(path, trust_pickle=trust_pickle, name=name)
        _check_folder(path, trust_pickle=trust_pickle)
        return _open_clip(f"local-dir:{source}", name=name)
    if source.startswith("hf-hub:"):
        return _open_clip(source, name=name)
    if trained := checkpoints.named(source):
        return checkpoints.from_checkpoint(*trained, name=name)
    if cached := _in_cache(source):
        return hf.from_folder(cached, trust_pickle=trust_pickle, name=name)
    return _open_clip(*_known_tag(source), name=name)


def _in_cache(source: str) -> Path | None:
    """The folder in the hub's cache of a model of transformers; None for an open_clip model and
    tag. UsageError, with what to do, for a hub's name that is not there."""
    owner, slash, model = source.partition("/")
    if not slash or not model or "/" in model or owner in _architectures():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except HFValidationError:
        return None
    except (LocalEntryNotFoundError, HfHubHTTPError):
        near = difflib.get_close_matches(owner, _architectures(), n=3, cutoff=0.7)
        advice = (
            f" Did you mean {' or '.join(near)}?"
            if near
            else f" Download it with `hf download {source}`, or name a folder."
        )
        raise UsageError(
            f"{shorten(source)!r} is no open_clip model and tag, and not in the hub's cache."
            f"{advice}"
        ) from None


def _architectures() -> set[str]:
    import open_clip

    return {model for model, _ in open_clip.list_pretrained()}


def _open_clip(source: str, tag: str | None = None, *, name: str) -> Parts:
    import open_clip

    try:
        model, transform = open_clip.create_model_from_pretrained(source, tag)
        tokenizer = open_clip.get_tokenizer(source)
        local = source.startswith("local-dir:")
        files = Path(source.removeprefix("local-dir:")) if local else None
        config = open_clip_config(source, model)
        describe = describe_open_clip(config, tokenizer, files)
        architecture = open_clip_architecture(config["model_cfg"])
        return Parts(model, transform, tokenizer, name, describe, architecture)
    except ClipguideError:
        raise
    except Exception as error:  # open_clip, safetensors and json each raise their own
        raise _does_not_load(name, error) from error


def _does_not_load(name: str, error: Exception) -> ClipguideError:
    if "loading state_dict" in str(error) or isinstance(error, AttributeError):
        return ClipguideError(
            f"The weights of {name} are not those of the model that its configuration "
            f"describes: {reason(error)}."
        )
    return ClipguideError(f"The CLIP {name} cannot be loaded: {reason(error)}.")


def _is_one(name: str) -> bool:
    """Whether a name is no ensemble's: it has no + or *, or it is a path, on a device or not."""
    source, _, suffix = name.rpartition("@")
    plain = not set("+*") & set(suffix)
    return os.path.exists(name) or plain and (not set("+*") & set(source) or os.path.exists(source))


def _weighed(member: str) -> tuple[float, str]:
    """The weight and name of "0.7*mini"; the weight is 1 if there is none."""
    weight, star, name = member.rpartition("*")
    try:
        value = float(weight) if star else 1.0
    except ValueError:
        raise UsageError(
            f"{shorten(weight)!r} is no weight: give a number, as in 0.7*mini+0.3*mini-judge."
        ) from None
    if not name.strip():
        raise UsageError("An ensemble names a CLIP before and after each +, as in mini+mini-judge.")
    return value, name.strip()


def _placed(name: str, device: str, dtype: str) -> tuple[str, str, str]:
    """What "name@device:dtype" names, with its device and dtype in the place of those given."""
    if "@" not in name or os.path.exists(name):
        return name, device, dtype
    source, _, suffix = name.rpartition("@")
    where, colon, kind = suffix.rpartition(":")
    if not colon or kind.isdecimal():  # cpu, cuda:0
        where, colon, kind = suffix, "", ""
    try:
        if where or not colon:
            to_device(where)
        if colon:
            to_dtype(kind)
    except UsageError as error:
        raise UsageError(
            f"After the @ of {shorten(name)!r} there must be a device, a dtype after a colon, or "
            f"both, as in mini@cpu, mini@:float16 or mini@cuda:0:bfloat16. {error}"
        ) from None
    return source, where or device, kind or dtype


def _check_folder(folder: Path, *, trust_pickle: bool) -> None:
    """UsageError if open_clip would not load this folder, or only with the wrong tokenizer."""
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


def _known_tag(name: str) -> tuple[str, str]:
    """The open_clip model and tag of "model/tag". UsageError if open_clip has no such pair."""
    import open_clip

    known = {f"{model}/{tag}" for model, tag in open_clip.list_pretrained()}
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *MINI], n=3)
        advice = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else (
                f"Give {' or '.join(MINI)}, a folder, a file of OpenAI's, or an open_clip model "
                "and tag."
            )
        )
        raise UsageError(f"There is no CLIP {shorten(name)!r}. {advice}")
    model, tag = name.split("/", 1)
    return model, tag
