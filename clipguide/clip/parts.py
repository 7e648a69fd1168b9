"""The parts of a CLIP before it is frozen, for training and export.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..errors import UsageError
from . import folding
from .base import Clip, context_length, to_device
from .fingerprint import Architecture, fingerprints

CONFIG = "open_clip_config.json"
TOKENIZER = (".json", ".txt", ".model")  # suffixes of tokenizer files
WEIGHTS = "open_clip_model.safetensors"


@dataclass
class Parts:
    """The model, transform and tokenizer of a CLIP, as `load_parts` reads them, in float32.

    `model` is an open_clip model, or a transformers model with the same method names:
    `encode_image` of normalised images, `encode_text` of tokens, `logit_scale`, perhaps
    `logit_bias`, `visual`. `describe` writes the other files of a folder. `architecture` is what
    the weights do not show.
    """

    model: nn.Module
    transform: Callable[[Image.Image], torch.Tensor]
    tokenizer: Callable[..., torch.Tensor]
    name: str
    describe: Callable[[Path], None] | None = None
    architecture: Architecture = Architecture()

    @property
    def preprocess(self) -> dict:
        """Return size, mean, std, interpolation and resize_mode."""
        return self.model.visual.preprocess_cfg

    @property
    def image_size(self) -> int:
        """Return the side in pixels of the input of the image encoder."""
        size = self.preprocess["size"]
        return int(size if isinstance(size, int) else size[0])

    @property
    def is_hf(self) -> bool:
        """Return whether the model is a transformers model."""
        return getattr(self.model, "of_transformers", False)

    def normalise(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return normalised images from images in [0, 1] of the size of the encoder."""
        mean_3, std_3 = (torch.tensor(self.preprocess[k]).to(image_B3HW) for k in ("mean", "std"))
        return (image_B3HW - mean_3[:, None, None]) / std_3[:, None, None]

    def clip(self, *, device: str = "cpu", dtype: str = "float32", keep: bool = True) -> Clip:
        """Return a frozen Clip. It has a copy of the model, so that training can continue, unless
        `keep` is False."""
        model = copy.deepcopy(self.model) if keep else self.model
        folding.unskip(model.visual)
        return Clip(
            model,
            transform=self.transform,
            tokenizer=self.tokenizer,
            name=self.name,
            device=device,
            dtype=dtype,
            architecture=self.architecture,
        )

    def live(self) -> Clip:
        """Return a Clip over this model itself. It is not frozen, so its vectors follow the
        weights. Its logit_scale and fingerprint do not."""
        return Clip(
            self.model,
            transform=self.transform,
            tokenizer=self.tokenizer,
            name=self.name,
            device=str(next(self.model.parameters()).device),
            live=True,
            architecture=self.architecture,
        )

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of `clip` with the present weights."""
        length = context_length(self.model, self.tokenizer)
        return fingerprints(
            self.model,
            preprocess=dict(self.preprocess),
            architecture=self.architecture,
            tokenizer=partial(self.tokenizer, context_length=length),
        ).whole

    def to(self, device: str) -> Parts:
        """Return the same parts after moving the model to a device."""
        self.model.to(to_device(device))
        return self

    def save(self, folder: Path) -> None:
        """Write a folder that `load_clip` loads, and open_clip or transformers.

        Raises:
            UsageError: `describe` is missing, so the configuration of the folder is unknown.
        """
        if self.describe is None:
            raise UsageError(f"The CLIP {self.name} was not loaded by name: it cannot be saved.")
        folder.mkdir(parents=True, exist_ok=True)
        self.describe(folder)
        if self.is_hf:
            self.model.model.save_pretrained(folder, max_shard_size="1000GB")
            return
        from safetensors.torch import save_file

        state = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def describe_open_clip(config: dict, tokenizer: object, files: Path | None) -> Callable:
    """Return a function that writes the configuration of an open_clip folder and the files of its
    tokenizer: those in the folder `files`, or those that a tokenizer of transformers writes."""

    def write(folder: Path) -> None:
        own = getattr(tokenizer, "tokenizer", None)
        if hasattr(own, "save_pretrained"):
            config["model_cfg"]["text_cfg"].setdefault("hf_tokenizer_name", "tokenizer")
            if files is None:
                own.save_pretrained(folder)
        for file in sorted(files.iterdir()) if files else ():
            if file.is_file() and file.suffix in TOKENIZER and file.name != CONFIG:
                shutil.copy(file, folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    return write


def open_clip_config(source: str, model: nn.Module) -> dict:
    """Return the open_clip_config.json of a model that open_clip made from a source."""
    if source.startswith("local-dir:"):
        return json.loads((Path(source.removeprefix("local-dir:")) / CONFIG).read_text())
    from open_clip import factory

    if source.startswith("hf-hub:"):
        return factory._get_hf_config(source.removeprefix("hf-hub:"))
    config = copy.deepcopy(factory.get_model_config(source))
    given = dict(model.visual.preprocess_cfg)
    kept = {k: given[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in given}
    return {"model_cfg": config, "preprocess_cfg": kept}
