"""`export`: a CLIP for other runtimes, checked by running what was written."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from PIL import Image

from .. import __version__
from ..clip import Clip, Parts
from ..errors import UsageError, close_matches
from ..prompts import shorten
from . import folder as folders
from . import readme, tokens
from .probes import Agreement, Probes

TARGETS = {  # packages that each target needs besides clipguide's own
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "hf": (),
    "torch-export": (),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export: `files` by name, with the cosine similarities of each to torch
    (`agreement`) and the scheme of int8. `card` is the clip.json in the folder."""

    folder: Path
    to: str
    agreement: dict[str, Agreement]
    quantisation: dict[str, str]
    sizes: dict[str, int]
    card: dict


def export(
    parts: Parts,
    *,
    to: str,
    out: str | os.PathLike,
    int8: bool = False,
    fp16: bool = False,
    force: bool = False,
    pictures: Sequence[Image.Image] | None = None,
) -> Exported:
    """Write a CLIP to a folder for another runtime, and compare it there with PyTorch.

    - "onnx" writes image.onnx (image_B3HW, float32 RGB in [0, 1] of any size) and text.onnx
      (tokens_BL). Both return unit embeddings, for batches of any size. `int8` and `fp16` add files
      beside them.
    - "torch-export" writes the same as image.pt2 and text.pt2.
    - "hf" writes a folder of transformers' CLIPModel and CLIPProcessor. `fp16` stores float16
      weights.

    Each folder also has tokenizer.json, README.md and clip.json, which holds sizes, preprocessing,
    logit scale, fingerprint and figures.

    Args:
        parts: the parts of one CLIP, which `load_parts` returns.
        to: "onnx", "torch-export" or "hf".
        out: the folder to write.
        int8: whether to write int8 files too. Their scales come from every second image, and their
            figures from the others.
        fp16: whether to write float16 files too.
        force: whether `out` may be replaced.
        pictures: RGB images to compare on; drawings if None.

    Raises:
        UsageError: there is no such target, the model cannot be written for this target, a package
            is missing, or `out` exists.
        ClipguideError: the lowest cosine similarity to PyTorch is below 0.9999 (0.999 in float16,
            0.99 in int8). Nothing is written.
    """
    out = Path(out)
    requirements(to, int8=int8, fp16=fp16)
    if not isinstance(parts, Parts):
        raise UsageError("What is exported is one CLIP, as load_parts reads it, and no ensemble.")
    if to == "hf":
        from . import hf

        hf.check(parts)
    folders.check(out, force=force)
    clip = parts.clip(device="cpu")
    probes = Probes.of(clip, pictures)
    with folders.staged(out, force=force) as stage:
        said = _write(parts, clip, to, stage, probes, int8=int8, fp16=fp16)
        found = None if to == "hf" else tokens.write(parts, clip, stage, probes.texts)
        sizes = {
            str(file.relative_to(stage)): file.stat().st_size
            for file in sorted(stage.rglob("*"))
            if file.is_file()
        }
        card = _card(parts, clip, to, said, tokenizer=found, drawn=pictures is None)
        text = json.dumps(card, indent=2, ensure_ascii=False)
        (stage / folders.CARD).write_text(text + "\n", encoding="utf-8")
        (stage / "README.md").write_text(readme.text(card, sizes, out.name), encoding="utf-8")
    return Exported(
        folder=out,
        to=to,
        agreement={name: one["cosine"] for name, one in said.items()},
        quantisation={k: v["quantisation"] for k, v in said.items() if "quantisation" in v},
        sizes=sizes,
        card=card,
    )


def requirements(to: str, *, int8: bool = False, fp16: bool = False) -> None:
    """Raise UsageError for an unknown target, an unsupported precision, or a missing package. The
    message says which package to install."""
    if to not in TARGETS:
        raise UsageError(f"There is no export to {shorten(to)!r}.{close_matches(to, TARGETS)}")
    if int8 and to != "onnx":
        raise UsageError(f"int8 is made for onnx, not for {to}: leave --int8 out.")
    missing = [name for name in TARGETS[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"An export to {to} needs {' and '.join(missing)}: pip install 'clipguide[export]'."
        )


def _write(
    parts: Parts, clip: Clip, to: str, stage: Path, probes: Probes, *, int8: bool, fp16: bool
) -> dict[str, dict]:
    if to == "onnx":
        from . import onnx_files

        return onnx_files.write(clip, stage, probes, int8=int8, fp16=fp16)
    if to == "torch-export":
        from . import program

        return program.write(clip, stage, probes, fp16=fp16)
    from . import hf

    return hf.write(parts, clip, stage, probes, fp16=fp16)


def _card(
    parts: Parts, clip: Clip, to: str, said: dict, *, tokenizer: str | None, drawn: bool
) -> dict:
    packages = ("torch", "transformers", "open_clip_torch", *TARGETS[to])
    versions = {name: metadata.version(name) for name in packages}
    card = {
        "clipguide": __version__,
        "model": Path(parts.name).name if os.path.exists(parts.name) else parts.name,
        "fingerprint": clip.fingerprint,
        "to": to,
        "image_size": clip.image_size,
        "context_length": clip.context_length,
        "embed_dim": clip.embed_dim,
        "logit_scale": clip.logit_scale,
        "logit_bias": clip.logit_bias,
        "preprocess": clip.preprocess,
        "tokenizer": tokenizer,
        "measured_on": "drawings and texts" if drawn else "images given and texts",
        "files": {k: {**v, "cosine": asdict(v["cosine"])} for k, v in said.items()},
        "versions": {"python": platform.python_version(), **versions},
    }
    return json.loads(json.dumps(card))  # as it will be read
