"""clipguide doctor: report what is installed, what it can use, and whether it works."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import ReportAsJson

PACKAGES = (
    "clipguide torch torchvision diffusers transformers open_clip_torch accelerate timm numpy"
).split()
DEVELOPERS = ("bench", "docs", "test", "train")  # extras that add no command
GIB = 2**30


def doctor(
    draw: Annotated[
        bool, typer.Option("--draw/--no-draw", help="Draw and score one image.")
    ] = True,
    as_json: ReportAsJson = False,
) -> None:
    """Report versions, devices, memory and extras; draw an image.

    Paste the report into an issue. It contains no path except the folder of the hub's cache.
    """
    with console.plain_speech(drawing=draw):
        python = f"Python {platform.python_version()}"
        report = {
            "system": f"{platform.system()} {platform.machine()}, {python}",
            "packages": {name: installed(name) for name in PACKAGES},
            "devices": devices(),
            "hub": hub(),
            "extras": extras(),
            "models": models(),
        }
        if draw:
            report["trial"] = trial()
    typer.echo(json.dumps(report, indent=2) if as_json else "\n".join(lines(report)))
    if any(report["models"].values()) or "error" in report.get("trial", {}):
        raise typer.Exit(1)


def installed(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """Return the devices of torch, with total and free memory in bytes if torch reports them."""
    import torch

    cpu: dict[str, Any] = {"name": "cpu", "threads": torch.get_num_threads(), **memory()}
    if hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        cpu["bfloat16"] = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    found = [cpu]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"cuda:{index} {torch.cuda.get_device_name(index)}"
        found.append({"name": name, "total": total, "free": free})
        found[-1]["bfloat16"] = torch.cuda.is_bf16_supported()
    if torch.backends.mps.is_available():
        found.append({"name": "mps"})
    return found


def memory() -> dict[str, int]:
    """Return the total and the free memory of the machine, in bytes."""
    import psutil

    found = psutil.virtual_memory()
    return {"total": found.total, "free": found.available}


def hub() -> dict[str, Any]:
    """Return the folder of the hub's cache, the number of repositories in it, and their size in
    bytes."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return {"folder": constants.HF_HUB_CACHE, "repositories": 0, "bytes": 0, "offline": offline}
    return {
        "folder": constants.HF_HUB_CACHE,
        "repositories": len(found.repos),
        "bytes": found.size_on_disk,
        "offline": offline,
    }


def extras() -> dict[str, list[str]]:
    """Return the packages that each extra of clipguide lacks."""
    missing: dict[str, list[str]] = {}
    for line in metadata.requires("clipguide") or ():
        found = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line)
        if found and found[2] not in DEVELOPERS:
            lacks = missing.setdefault(found[2], [])
            if installed(found[1]) is None:
                lacks.append(found[1])
    return missing


def models() -> dict[str, str]:
    """Return the fault of each embedded model, or "" if it has none."""
    from .. import mini
    from ..errors import ClipguideError

    found = {}
    for name in mini.MODELS:
        try:
            mini.check(name)
            found[name] = ""
        except ClipguideError as error:
            found[name] = str(error)
    return found


def trial() -> dict[str, Any]:
    """Draw and score one image with the embedded models. Return the seconds of each, or the error.
    """
    started = time.perf_counter()
    try:
        from ..pipelines.text_to_image import TextToImage

        draw = TextToImage()
        ready = time.perf_counter()
        picture = draw("a red fox", seed=0, steps=10)[0]
    except Exception as error:  # the report must contain any error
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "load": round(ready - started, 2),
        "draw": round(time.perf_counter() - ready, 2),
        "guide_score": round(float(picture.guide_score), 4),
        "judge_score": round(float(picture.judge_score), 4),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report as text."""
    versions = (f"{name} {version or 'missing'}" for name, version in report["packages"].items())
    cache = report["hub"]
    out = [report["system"], ", ".join(versions)]
    out += [_device(device) for device in report["devices"]]
    folder = str(cache["folder"]).replace(str(Path.home()), "~", 1)
    said = f"{cache['repositories']} repositories, {cache['bytes'] / GIB:.1f} GiB"
    out.append(f"hub cache {folder}: {said}{', offline' if cache['offline'] else ''}")
    for name, lacks in sorted(report["extras"].items()):
        add = f"missing {', '.join(lacks)}: pip install 'clipguide[{name}]'"
        out.append(f"extra {name}: {add if lacks else 'installed'}")
    bad = [problem for problem in report["models"].values() if problem]
    out += bad or [f"embedded models: {', '.join(report['models'])}, all whole"]
    if found := report.get("trial"):
        if "error" in found:
            out.append(f"drawing failed: {found['error']}")
        else:
            out.append(
                f"one image of 10 steps: loaded in {found['load']:.1f} s, drawn in "
                f"{found['draw']:.1f} s, guide {found['guide_score']:.2f}, "
                f"judge {found['judge_score']:.2f}"
            )
    out.append(f"terminal: {os.environ.get('LANG', 'no LANG')}, {os.cpu_count()} processors")
    return out


def _device(device: dict[str, Any]) -> str:
    parts = [device["name"]]
    if "threads" in device:
        parts.append(f"{device['threads']} threads")
    if "total" in device:
        parts.append(f"{device['free'] / GIB:.1f} of {device['total'] / GIB:.1f} GiB free")
    if "bfloat16" in device:
        parts.append("bfloat16" if device["bfloat16"] else "no fast bfloat16")
    return "device " + ", ".join(parts)
