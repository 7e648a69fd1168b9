"""The generator's training in a suitcase: for a machine with a GPU that nothing else reaches.

    python -m training.pack make     # training/cache/pack: parts, each below 60 MB
    bash training/gpu.sh OUT         # there: unpacks it, trains, and leaves weights in OUT
    python -m training.pack take OUT # here again: the weights become the checkpoints

The parts may travel one by one: `drawings` (at 128 px as WebP: the autoencoder is trained before,
and grown after), `words` (names, the text tower, the autoencoder) and `networks` (prior and
decoder so far). If `training.codes pairs` was run, a fourth part is `codes`: what `gpu.sh OUT
codes` fits. Weights travel in half precision, in files below 15 MB. The codes travel in float32, as
they are rounded later.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import codes, common, decoder, prior, samples, text, vae
from training.data.pixels import at_size
from training.drawings import CANDIDATES
from training.loop import averaged

CACHE = common.CACHE / "pack"
SIDE, QUALITY, PART = 128, 80, 15_000_000
TRAINED = {"prior": prior.CACHE, "decoder": decoder.CACHE}
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def make() -> None:
    """Pack what `gpu.sh` needs."""
    shutil.rmtree(CACHE, ignore_errors=True)
    (CACHE / "drawings").mkdir(parents=True)
    pictures = at_size(common.DATA, SIDE)
    rows = [json.loads(line) for line in (common.DATA / "manifest.jsonl").open(encoding="utf-8")]
    ends = np.zeros(len(rows) + 1, np.int64)
    with (CACHE / "drawings/drawings.bin").open("wb") as file:
        for row in rows:
            if row["split"] == "train":
                image = Image.fromarray(pictures[row["index"]])
                image.save(file, "WEBP", quality=QUALITY, method=4)
            ends[row["index"] + 1] = file.tell()
    np.save(CACHE / "drawings/ends.npy", ends)
    samples.eye()
    samples.foreign_names()
    for file in (
        common.DATA / "manifest.jsonl",
        common.DATA / "colour-shares.npy",
        *decoder.CACHE.glob("moments.pt"),  # without, the new latents are measured
        samples.CACHE / "axes.pt",
        samples.CACHE / "eye.pt",
        samples.CACHE / "names.json",
        *sorted((text.CACHE / "tokenizer").iterdir()),
    ):
        target = CACHE / "words/files" / file.relative_to(common.CACHE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    folder = decoder.autoencoder()
    give(CACHE / "words/vae" / folder.name, averaged(folder))
    if (text.CACHE / "prior.pt").exists():  # else it is in the checkpoint of the prior
        give(CACHE / "words/text", torch.load(text.CACHE / "prior.pt", weights_only=True))
    for name, folder in TRAINED.items():
        if (folder / "checkpoint.pt").exists():
            give(CACHE / "networks" / name, averaged(folder))
    if codes.PAIRS.exists():
        for file in (CANDIDATES, codes.PAIRS):
            target = CACHE / "codes" / file.relative_to(common.CACHE)
            target.parent.mkdir(parents=True)
            shutil.copy(file, target)
    for part in sorted(CACHE.iterdir()):
        size = sum(f.stat().st_size for f in part.rglob("*") if f.is_file())
        print(f"{size / 1e6:.1f} MB in {part}")


@app.command()
def unpack() -> None:
    """Lay the pack out as the other modules expect it."""
    shutil.copytree(CACHE / "words/files", common.CACHE, dirs_exist_ok=True)
    ends = np.load(CACHE / "drawings/ends.npy")
    raw = (CACHE / "drawings/drawings.bin").read_bytes()
    pictures = np.zeros((len(ends) - 1, SIDE, SIDE, 4), np.uint8)
    for k, (start, end) in enumerate(zip(ends[:-1], ends[1:])):
        if end > start:
            pictures[k] = np.asarray(Image.open(io.BytesIO(raw[start:end])).convert("RGBA"))
    np.save(common.DATA / "pictures.npy", pictures)
    for folder in (vae.SMALL, vae.LARGE):
        if (CACHE / "words/vae" / folder.name).is_dir():
            keep(folder, received(CACHE / "words/vae" / folder.name))
    if (CACHE / "words/text").is_dir():
        torch.save(received(CACHE / "words/text"), text.CACHE / "prior.pt")
    for name, folder in TRAINED.items():
        if (CACHE / "networks" / name).is_dir():
            keep(folder, received(CACHE / "networks" / name))
    if (CACHE / "codes").is_dir():
        shutil.copytree(CACHE / "codes", common.CACHE, dirs_exist_ok=True)


@app.command()
def send(out: Path) -> None:
    """Write the averaged weights of what was trained to `out`."""
    for name, folder in TRAINED.items():
        if (folder / "log.csv").exists():
            give(out / name, averaged(folder))
    if (codes.CACHE / "log.csv").exists():
        give(out / "codes", codes.carried(averaged(codes.CACHE)), half=False)


@app.command()
def take(out: Path) -> None:
    """Make the weights that came back the checkpoints; training goes on from them."""
    for name, folder in TRAINED.items():
        if (out / name).is_dir():
            keep(folder, received(out / name))
            print(f"{name}: {folder / 'checkpoint.pt'}")
    if (out / "codes").is_dir():
        keep(codes.CACHE, codes.arrived(received(out / "codes")))
        print(f"codes: {codes.CACHE / 'checkpoint.pt'}")


def give(folder: Path, state: dict[str, Tensor], *, half: bool = True) -> None:
    """Tensors in half precision or as they are, in files of at most PART bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in state.items():
        value = value.half() if half and value.is_floating_point() else value
        if size + value.nbytes > PART:
            parts.append({})
            size = 0
        parts[-1][name], size = value.contiguous(), size + value.nbytes
    for k, part in enumerate(parts):
        save_file(part, folder / f"{k}.safetensors")


def received(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of `give`, in float32."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def keep(folder: Path, state: dict[str, Tensor]) -> None:
    """A checkpoint that training begins from: weights, and no optimiser yet."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"model": state, "average": state, "average_steps": 1000, "index": 0, "minutes": 0.0}
    torch.save({**kept, "optimizer": None, "falling": False}, folder / "checkpoint.pt")


if __name__ == "__main__":
    app()
