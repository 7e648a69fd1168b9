"""CLIP, any of them: pictures and texts as unit vectors of one space.

Shapes: B images or texts, N texts, 3 channels, H rows, W columns, D the width of the embedding.
Images are RGB in [0, 1]; embeddings are float32 (float64 of a float64 model) and of length 1.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from . import folding, mini
from .errors import ClipguideError, ClipguideWarning, UsageError, close_matches, reason
from .prompts import shorten

MINI = {"mini": "guide", "mini-judge": "judge"}
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
CONFIG = "open_clip_config.json"
OPENAI_IDS = 49408  # of the tokenizer that open_clip takes by default
CHUNK = 64  # texts or pictures encoded at a time


class Clip:
    """A frozen CLIP in evaluation mode: `load_clip` makes one.

    `image_size` is the side in pixels that the model sees, `context_length` the most tokens of a
    text, `embed_dim` the width D, `logit_scale` and `logit_bias` what turns cosines into logits.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        transform: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[..., torch.Tensor],
        name: str,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.name = name
        self.device = to_device(device)
        self.dtype = to_dtype(dtype)
        self.preprocess = dict(model.visual.preprocess_cfg)
        size = self.preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise ClipguideError(f"The CLIP {name} sees {width}x{height}; it must see squares.")
        self.image_size = int(height)
        read = getattr(tokenizer, "context_length", None)  # less than a Hugging Face tower could
        self.context_length = int(min(model.context_length, read or model.context_length))
        self.logit_scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = 0.0 if bias is None else float(bias.detach())
        model = model.eval().requires_grad_(False).to(self.device, self.dtype)
        self._model = model.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self._transform, self._tokenizer = transform, tokenizer
        self._wide = torch.promote_types(self.dtype, torch.float32)
        self._mean_3, self._std_3 = (
            torch.tensor(self.preprocess[key], dtype=self._wide, device=self.device)
            for key in ("mean", "std")
        )
        self.embed_dim = self.encode_text(["a"]).shape[1]
        if self.dtype == self._wide and any(folding.pairs(self._model.visual)):
            self._fold()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights (as float32) and of the preprocessing."""
        return fingerprint({"clip": self._model}, extra=self.preprocess)

    def _fold(self) -> None:
        """Batch norms become a part of the convolutions; the fingerprint stays the checkpoint's."""
        _ = self.fingerprint  # cached before the weights change
        random = torch.Generator().manual_seed(0)
        image_13HW = torch.rand(1, 3, self.image_size, self.image_size, generator=random)
        image_13HW = image_13HW.to(self.device, self.dtype, memory_format=torch.channels_last)
        folding.fold(self._model.visual, lambda: self._model.encode_image(image_13HW))

    def encode_image(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Unit vectors_BD of images in [0, 1] of any size, differentiable.

        Resized as the checkpoint's own transform does, antialiased, but without its rounding to
        8 bits. Values outside [0, 1] are clamped, and keep a gradient that leads back inside.
        """
        image_B3HW = image_B3HW.to(self.device, self._wide)
        image_B3HW = _resize(image_B3HW, self.preprocess, self.image_size)
        image_B3HW = (image_B3HW - self._mean_3[:, None, None]) / self._std_3[:, None, None]
        image_B3HW = image_B3HW.to(self.dtype, memory_format=torch.channels_last)
        return self._unit(self._model.encode_image(image_B3HW))

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors_BD of RGB pictures, through the checkpoint's own transform."""
        chunks = [
            self._model.encode_image(
                torch.stack([self._transform(picture) for picture in chunk]).to(
                    self.device, self.dtype
                )
            )
            for chunk in _chunks(pictures)
        ]
        return self._unit(torch.cat(chunks))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors_BD of texts. One that is too long is cut, its end token kept, and warned of.

        Emoji, other scripts and blanks are whatever the tokenizer makes of them.
        """
        return self._unit(torch.cat([self._encode_texts(list(chunk)) for chunk in _chunks(texts)]))

    def similarity(self, image_BD: torch.Tensor, text_ND: torch.Tensor) -> torch.Tensor:
        """Cosines_BN of unit vectors."""
        return image_BD @ text_ND.T

    def _unit(self, features_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(features_BD.to(self._wide), dim=-1)

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        tokens_BL = self._tokenizer(texts)
        for i in self._too_long(texts, tokens_BL):
            warnings.warn(
                f"The CLIP {self.name} reads {self.context_length} tokens, and not the end of "
                f"{shorten(texts[i])!r}: {shorten(self._lost(texts[i]), 200)!r} is lost.",
                ClipguideWarning,
                stacklevel=4,
            )
        return self._model.encode_text(tokens_BL.to(self.device))

    def _too_long(self, texts: list[str], tokens_BL: torch.Tensor) -> list[int]:
        """The places of texts that are cut: where a window one token longer is not just padded."""
        length = self.context_length
        longer_BL = self._tokenizer(texts, context_length=length + 1)[:, :length]
        return (longer_BL != tokens_BL).any(dim=1).nonzero().flatten().tolist()

    def _lost(self, text: str) -> str:
        """The last words of a text that is too long: those that do not fit."""
        words = text.split()
        low, high = 0, len(words)  # the first `low` words fit, the first `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            head = [" ".join(words[:middle])]
            if self._too_long(head, self._tokenizer(head)):
                high = middle
            else:
                low = middle
        return " ".join(words[low:])


def load_clip(name: str = "mini", *, device: str = "cpu", dtype: str = "float32") -> Clip:
    """A CLIP by name, on a device.

    `name` is "mini" (the embedded guide), "mini-judge", a folder with an open_clip_config.json and
    safetensors, an open_clip model and tag such as "ViT-B-32/laion2b_s34b_b79k", or "hf-hub:" and
    the name of an open_clip model on the hub; these open_clip downloads where they are not cached.
    UsageError for a name that is none of these, ClipguideError
    for one that does not load.
    """
    to_dtype(dtype)
    to_device(device)
    if name in MINI:
        mini.check(MINI[name])
        source, tag = f"local-dir:{mini.path(MINI[name])}", None
    elif Path(name).is_dir():
        _check_folder(Path(name))
        source, tag = f"local-dir:{name}", None
    elif name.startswith("hf-hub:"):
        source, tag = name, None
    else:
        source, tag = _known_tag(name)
    import open_clip

    try:
        model, transform = open_clip.create_model_from_pretrained(source, tag)
        tokenizer = open_clip.get_tokenizer(source)
        return Clip(
            model, transform=transform, tokenizer=tokenizer, name=name, device=device, dtype=dtype
        )
    except ClipguideError:
        raise
    except Exception as error:  # open_clip, safetensors and json each raise their own
        raise ClipguideError(f"The CLIP {name} cannot be loaded: {reason(error)}.") from error


def to_dtype(name: str) -> torch.dtype:
    """The torch type of a name. UsageError if there is none."""
    if name not in DTYPES:
        raise UsageError(f"There is no dtype {name!r}.{close_matches(name, DTYPES)}")
    return DTYPES[name]


def to_device(name: str) -> torch.device:
    """The torch device of a name. UsageError if it cannot be used here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(
            f"There is no device {shorten(name)!r} here; cpu is always there."
        ) from None
    return torch.device(name)


def fingerprint(modules: dict[str, nn.Module], *, extra: object = None) -> str:
    """sha256 of all tensors, by sorted name, floats as float32, and of `extra` as JSON."""
    digest = hashlib.sha256(json.dumps(extra, sort_keys=True).encode())
    for part, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            if tensor.is_floating_point():
                tensor = tensor.float()
            digest.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def clamp_with_gradient(x: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """x clamped; a gradient passes where it leads back inside (Crowson's ClampWithGrad)."""
    return _Clamp.apply(x, low, high)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        return gradient * (gradient * (x - x.clamp(low, high)) >= 0), None, None


def _resize(image_B3HW: torch.Tensor, config: dict, size: int) -> torch.Tensor:
    """Images at size x size, clamped to [0, 1], as open_clip's transform of the same config."""
    height, width = image_B3HW.shape[-2:]
    mode = config["resize_mode"]
    if mode == "squash":
        target = (size, size)
    elif mode == "shortest":  # torchvision truncates the longer side
        target = tuple(int(size * side / min(height, width)) for side in (height, width))
    else:
        target = tuple(round(side * size / max(height, width)) for side in (height, width))
    if target != (height, width):
        filter_ = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        image_B3HW = F.interpolate(image_B3HW, target, mode=filter_, antialias=True)
    image_B3HW = clamp_with_gradient(image_B3HW)
    height, width = image_B3HW.shape[-2:]
    if height < size or width < size:
        down, across = size - height, size - width
        padding = (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)
        return F.pad(image_B3HW, padding, value=config.get("fill_color", 0) / 255)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image_B3HW[..., top : top + size, left : left + size]


def _check_folder(folder: Path) -> None:
    """UsageError if open_clip would not load this folder, or only with the wrong tokenizer."""
    try:
        text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
    except FileNotFoundError:
        raise UsageError(f"{folder} is no CLIP folder: it has no {CONFIG}.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / CONFIG} is not the configuration of a CLIP.") from None
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} has no weights in a .safetensors file, which clipguide reads.")
    if not text.get("hf_tokenizer_name") and text.get("vocab_size", OPENAI_IDS) != OPENAI_IDS:
        raise UsageError(
            f"{folder / CONFIG} names no tokenizer, so open_clip would take its own of "
            f"{OPENAI_IDS} ids: set text_cfg.hf_tokenizer_name."
        )


def _known_tag(name: str) -> tuple[str, str]:
    """The open_clip model and tag of "model/tag". UsageError if open_clip has no such pair."""
    import open_clip

    known = {f"{model}/{tag}" for model, tag in open_clip.list_pretrained()}
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *MINI], n=3)
        advice = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else (f"Give {' or '.join(MINI)}, a folder, or an open_clip model and tag.")
        )
        raise UsageError(f"There is no CLIP {shorten(name)!r}. {advice}")
    model, tag = name.split("/", 1)
    return model, tag


def _chunks(items: Sequence) -> list[Sequence]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
