"""clipguide models: list the embedded models, and the CLIPs in the hub's cache."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import ReportAsJson

CONFIGS = ("open_clip_config.json", "config.json")


def models(
    word: Annotated[
        str,
        typer.Argument(
            metavar="WORD",
            help="With --things: list only names that contain this word.",
            show_default=False,
        ),
    ] = "",
    things: Annotated[
        bool, typer.Option("--things", help="List the objects that the embedded generator draws.")
    ] = False,
    as_json: ReportAsJson = False,
) -> None:
    """List the embedded models, and the CLIPs in the hub's cache.

    The list has sizes, licences, inputs, fingerprints and figures.
    """
    from .. import mini
    from ..errors import ClipguideError, UsageError

    with console.plain_speech():
        if word and not things:
            raise UsageError(f"What is {word!r}? `clipguide models --things {word}` looks for it.")
        if things:
            from ..mini import known

            names = known.things(word)
            if not names:
                raise ClipguideError(f"The embedded generator draws nothing named {word!r}.")
            typer.echo(json.dumps(names) if as_json else "\n".join(names))
            return
        found = [embedded(name) for name in mini.MODELS]
        found += cached()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for model in found:
        typer.echo(f"{model['name']}: {model['task']}")
        typer.echo(f"  {model['bytes'] / 1e6:.1f} MB, {model['licence']}, {model['path']}")
        if model["resolution"]:
            typer.echo(f"  sees {model['resolution']} px, reads {model['context']} tokens")
        if model["fingerprint"]:
            typer.echo(f"  fingerprint {model['fingerprint']}")
        if model["data"]:
            typer.echo(f"  trained on {model['data']}")
        for figure, value in model["figures"].items():
            typer.echo(f"  {figure}: {value}")


def embedded(name: str) -> dict:
    """Return the entry of an embedded model, in the words of its card."""
    from .. import load_clip, mini
    from ..clip.names import MINI

    card, folder = mini.card(name), mini.path(name)
    names = {model: called for called, model in MINI.items()}
    return {
        "name": name,
        "clip": names.get(name),
        "path": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        **{field: card[field] for field in ("licence", "task", "data", "figures")},
        **_window(folder),
        "fingerprint": load_clip(names[name]).fingerprint if name in names else None,
    }


def cached(folder: Path | None = None) -> list[dict]:
    """Return the CLIPs in the hub's cache or in `folder`. Each is named by its path."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(folder).repos
    except CacheNotFound:
        return []
    found = []
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        for revision in repository.revisions:
            window = _window(revision.snapshot_path)
            if window["resolution"]:
                found.append(
                    {
                        "name": repository.repo_id,
                        "clip": str(revision.snapshot_path),
                        "path": str(revision.snapshot_path),
                        "bytes": revision.size_on_disk,
                        "licence": "see its page",
                        "task": "a CLIP in the hub's cache",
                        "data": "",
                        "figures": {},
                        **window,
                        "fingerprint": None,  # this needs the loaded model
                    }
                )
    return found


def _window(folder: Path) -> dict[str, int | None]:
    """Return the image size in pixels and the number of tokens from the folder of a CLIP."""
    config: dict[str, Any] = {}
    for name in CONFIGS:
        if (folder / name).is_file():
            with suppress(ValueError):
                config = json.loads((folder / name).read_text())
            break
    if "model_cfg" in config:  # written by open_clip
        vision, text = (config["model_cfg"][f"{tower}_cfg"] for tower in ("vision", "text"))
        size = config.get("preprocess_cfg", {}).get("size") or vision.get("image_size", 224)
        side = size if isinstance(size, int) else size[0]
        return {"resolution": side, "context": text.get("context_length", 77)}
    if config.get("model_type") in ("clip", "siglip"):
        vision, text = config.get("vision_config", {}), config.get("text_config", {})
        context = text.get("max_position_embeddings", 77)
        return {"resolution": vision.get("image_size", 224), "context": context}
    return {"resolution": None, "context": None}
