"""Write the ONNX files of a CLIP, and run both encoders in onnxruntime."""

from __future__ import annotations

from pathlib import Path

from ..clip import Clip
from .half import halve
from .onnx import EXACT, HALF, example, export_tower, measure, tower_of
from .probes import Agreement, Probes, demand
from .quantise import quantise

INT8 = 0.99  # minimum cosine similarity to torch


def write(
    clip: Clip, folder: Path, probes: Probes, *, int8: bool, fp16: bool
) -> dict[str, dict[str, object]]:
    """Write image.onnx and text.onnx, and with `fp16` and `int8` also image-fp16.onnx and so on.

    Return the description of each file: its cosine similarities to torch, and its quantisation.

    Raises:
        ClipguideError: an encoder cannot be exported, or does not agree.
    """
    said: dict[str, dict[str, object]] = {}
    for kind in ("image", "text"):
        path = folder / f"{kind}.onnx"
        tower, given = tower_of(clip, kind), example(clip, kind)
        export_tower(tower, given, path, what=f"The {kind} tower of {clip.name}")
        said[path.name] = {"cosine": _checked(path, kind, probes, EXACT)}
        if fp16:
            half = folder / f"{kind}-fp16.onnx"
            halve(path, half)
            said[half.name] = {"cosine": _checked(half, kind, probes, HALF)}
    if int8:
        for kind in ("image", "text"):
            path = folder / f"{kind}-int8.onnx"
            how, found = quantise(folder / f"{kind}.onnx", path, kind, probes, bar=INT8)
            said[path.name] = {"cosine": found, "quantisation": how}
    return said


def _checked(path: Path, kind: str, probes: Probes, bar: float) -> Agreement:
    return demand(measure(path, kind, probes), bar, what=path.name)
