"""Export both encoders with torch.export as .pt2, which torch loads without the code of the model.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch

from ..clip import Clip
from .onnx import EXACT, HALF, dynamic, example, failing, quiet, run_images, tower_of
from .probes import Probes, compare, demand
from .towers import unused, without


def write(clip: Clip, folder: Path, probes: Probes, *, fp16: bool) -> dict[str, dict[str, object]]:
    """Write image.pt2 and text.pt2, and with `fp16` also image-fp16.pt2 and text-fp16.pt2. Load
    each and compare it with torch. Raise ClipguideError if an encoder cannot be exported or
    differs."""
    spare = {kind: unused(tower_of(clip, kind), example(clip, kind)) for kind in ("image", "text")}
    said: dict[str, dict[str, object]] = {}
    variants = {"": (clip, EXACT)} | ({"-fp16": (clip.astype("float16"), HALF)} if fp16 else {})
    for suffix, (one, bar) in variants.items():
        for kind in ("image", "text"):
            path = folder / f"{kind}{suffix}.pt2"
            with quiet(), failing(f"The {kind} tower of {clip.name} cannot be exported"):
                program = torch.export.export(
                    without(tower_of(one, kind), spare[kind]),
                    (example(one, kind),),
                    dynamic_shapes=(dynamic(kind),),
                    strict=False,
                )
                held = io.BytesIO()  # a full disk aborts the process in torch's writer
                torch.export.save(program, held)
                path.write_bytes(held.getbuffer())
                found = compare(*_vectors(path, kind, probes), what=path.name)
            said[path.name] = {"cosine": demand(found, bar, what=path.name)}
    return said


def _vectors(path: Path, kind: str, probes: Probes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors_ND of the probes, by the file and by the CLIP."""
    module = torch.export.load(str(path)).module()
    if kind == "text":
        return module(probes.tokens_NL), probes.text_ND
    array_ND = run_images(lambda given: module(torch.from_numpy(given)).numpy(), probes)
    return torch.from_numpy(array_ND), probes.image_ND
