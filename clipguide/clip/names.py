"""Parse the names of CLIPs: embedded ones, folders, files, models of the hub, tags of open_clip;
with a device, with learned words, and ensembles."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..errors import UsageError
from ..prompts import shorten
from . import checkpoints
from .base import to_device, to_dtype

MINI = {"mini": "guide", "mini-judge": "judge"}


def lasting_name(name: str) -> str:
    """Return a name with absolute paths, so that it loads the same CLIP from any folder."""
    if os.path.exists(name) and name not in MINI:
        return os.path.abspath(name)
    if not is_one(name):
        members = (member.strip().rpartition("*") for member in name.split("+"))
        return "+".join(f"{w}{star}{lasting_name(one)}" for w, star, one in members)
    source, at, suffix = name.rpartition("@") if "@" in name else (name, "", "")
    return "~".join(map(_lasting, worded(source))) + at + suffix


def _lasting(word: str) -> str:
    if word in MINI:
        return word
    if os.path.exists(word):
        return os.path.abspath(word)
    trained = checkpoints.named(word)
    return f"{trained[0]}/{os.path.abspath(trained[1])}" if trained else word


def is_one(name: str) -> bool:
    """Return whether a name is a single CLIP: it has no + or *, or it is a path, with or without a
    device."""
    source, _, suffix = name.rpartition("@")
    plain = not set("+*") & set(suffix)
    return os.path.exists(name) or plain and (not set("+*") & set(source) or os.path.exists(source))


def members(name: str) -> tuple[list[float], list[str]]:
    """Return the weights and names of the members of an ensemble. A single CLIP has no weights."""
    if is_one(name):
        return [], [name]
    weights, names = zip(*map(_weighed, name.split("+")), strict=True)
    if len(names) == 1:
        raise UsageError(f"{shorten(name)!r} gives a weight to one CLIP alone: leave it out.")
    return list(weights), list(names)


def _weighed(member: str) -> tuple[float, str]:
    """Return the weight and name of "0.7*mini". The default weight is 1."""
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


def placed(name: str, device: str, dtype: str) -> tuple[str, str, str]:
    """Return the name, device and dtype of "name@device:dtype". They replace the given ones."""
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


def worded(source: str) -> list[str]:
    """Return the CLIP of "mini~a.safetensors~b.safetensors", and the files of its words."""
    if os.path.exists(source) or not source.partition("~")[0]:
        return [source]
    return source.split("~")


def in_cache(source: str) -> Path | None:
    """Return the folder in the hub's cache of a transformers model, or None for an open_clip model
    and tag. Raise UsageError, with advice, for a name of the hub that is not in the cache."""
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


def known_tag(name: str) -> tuple[str, str]:
    """Return the open_clip model and tag of "model/tag". Raise UsageError if open_clip has no such
    pair."""
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
