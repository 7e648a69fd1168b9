"""The contract of a CLIP: images and texts as unit vectors of one space.

Shapes: B images or texts, N texts, 3 channels, H rows, W columns, D the width of the embedding.
Images are RGB in [0, 1]. Embeddings have length 1 and are float32 (float64 for a float64 model).
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ..errors import ClipguideError, ClipguideWarning, UsageError, close_matches
from ..prompts import shorten
from . import folding
from .attention import one_product
from .fingerprint import Architecture, Fingerprints, fingerprints
from .resize import resize, tame, unit_range

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
SHORT = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
CHUNK = 64  # texts or images that are encoded at a time
READING = threading.Lock()  # a fast tokenizer stores the length that it cuts to


def read(tokenizer: Callable, texts: list[str], *, context_length: int) -> torch.Tensor:
    """Return the tokens_BL of texts. Only one thread at a time runs the tokenizer: two threads that
    ask for different lengths could get either."""
    with READING:
        return tokenizer(texts, context_length=context_length)


class Clip:
    """A frozen CLIP in evaluation mode. `load_clip` makes one.

    A live CLIP, which `Parts.live` makes for training, is not frozen.

    Attributes:
        image_size: the side in pixels of the images that the model takes.
        context_length: the largest number of tokens in a text.
        embed_dim: D, the width of the embedding.
        logit_scale: the factor from cosines to logits.
        logit_bias: what is added to the scaled cosines; 0 for most CLIPs.
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
        live: bool = False,
        architecture: Architecture | None = None,
    ) -> None:
        self.name, self.architecture = name, architecture or Architecture()
        self.device = to_device(device)
        self.dtype = to_dtype(dtype)
        self.preprocess = dict(model.visual.preprocess_cfg)
        size = self.preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise ClipguideError(f"The CLIP {name} sees {width}x{height}; it must see squares.")
        self.image_size = int(height)
        self.context_length = context_length(model, tokenizer)
        self.logit_scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = 0.0 if bias is None else float(bias.detach())
        if not live:
            model = model.eval().requires_grad_(False)
        model = model.to(self.device, self.dtype)
        self._model = model.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self._tokenizer = partial(read, tokenizer, context_length=self.context_length)
        # transformers silently makes a tokenizer without words
        if torch.equal(*self._tokenizer(["", "a"])):
            raise ClipguideError(
                f"The tokenizer of the CLIP {name} reads every text alike: the files of its "
                "vocabulary are missing."
            )
        self._transform, self._to_pixels = transform, pixel_steps(transform)
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self._mean_3, self._std_3 = (
            torch.tensor(self.preprocess[key], dtype=self.wide, device=self.device)
            for key in ("mean", "std")
        )
        self.embed_dim = self.encode_text(["a"]).shape[1]
        if not live and self.dtype == self.wide and any(folding.pairs(self._model.visual)):
            self._fold()

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<{type(self).__name__} {self.name} on {self.device}, {dtype}>"

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 digest of everything that changes an embedding.

        That is the weights (as float32), the architecture, the preprocessing, the tokenizer and the
        words that the CLIP has learned.
        """
        return self.checkpoint_fingerprint

    @property
    def checkpoint_fingerprint(self) -> str:
        """Return the fingerprint of the CLIP without the words that it has learned."""
        return self._fingerprints.whole

    @property
    def image_fingerprint(self) -> str:
        """Return the sha256 digest of everything that changes the embedding of an image.

        That is the weights of the image encoder, its architecture and the preprocessing. CLIPs that
        differ only in their text encoders have the same one.
        """
        return self._fingerprints.image

    @cached_property
    def _fingerprints(self) -> Fingerprints:
        return fingerprints(
            self._model,
            preprocess=self.preprocess,
            architecture=self.architecture,
            tokenizer=self._tokenizer,
        )

    @property
    def resize_mode(self) -> str:
        """Return how an image becomes a square: "squash", "shortest" (crop) or "longest" (pad).

        "patches" means that the image keeps its aspect ratio.
        """
        return self.preprocess["resize_mode"]

    def _fold(self) -> None:
        """Fold the batch norms into the convolutions. The fingerprint stays that of the checkpoint.
        """
        _ = self._fingerprints  # cached before the weights change
        random = torch.Generator().manual_seed(0)
        image_13HW = torch.rand(1, 3, self.image_size, self.image_size, generator=random)
        image_13HW = image_13HW.to(self.device, self.dtype, memory_format=torch.channels_last)
        folding.fold(self._model.visual, lambda: self._model.encode_image(image_13HW))

    def astype(self, dtype: str) -> Clip:
        """Return a copy that computes in another dtype. Its fingerprint is the same."""
        _ = self._fingerprints
        other = copy.copy(self)
        other.dtype = to_dtype(dtype)
        other.wide = torch.promote_types(other.dtype, torch.float32)
        other._mean_3, other._std_3 = self._mean_3.to(other.wide), self._std_3.to(other.wide)
        other._model = copy.deepcopy(self._model).to(other.dtype)
        return other

    def compile(self) -> None:
        """Compile the image encoder with torch.compile, at the first batch of each size."""
        self._model.encode_image = torch.compile(self._model.encode_image)

    def encode_image(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the unit embeddings_BD of a batch of images. The result is differentiable.

        The images are resized as the checkpoint's own transform resizes them, with antialiasing,
        but are not rounded to 8 bits. Values outside [0, 1] are clamped, and their gradient leads
        back into the range.

        Args:
            image_B3HW: RGB images of any size, in [0, 1], or of uint8 or uint16.
        """
        image_B3HW = unit_range(image_B3HW).to(self.device, self.wide)
        image_B3HW = resize(image_B3HW, self.preprocess, self.image_size)
        image_B3HW = (image_B3HW - self._mean_3[:, None, None]) / self._std_3[:, None, None]
        image_B3HW = image_B3HW.to(self.dtype, memory_format=torch.channels_last)
        with one_product(self._model):
            return self._unit(self._model.encode_image(image_B3HW))

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """Apply the checkpoint's own transform to an image. Several threads may call this.

        Returns:
            bytes_HW3 if the transform ends as those of torchvision do, otherwise the normalised
            image_3HW.
        """
        picture = tame(picture, self.preprocess, self.image_size)
        if self._to_pixels is None:
            return self._transform(picture)
        for step in self._to_pixels:
            picture = step(picture)
        return torch.from_numpy(np.array(picture))

    @torch.no_grad()
    def encode_prepared(self, prepared: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the unit embeddings_BD of images that `prepare` has transformed."""
        image = torch.stack(list(prepared)).to(self.device)
        if self._to_pixels is not None:
            image = image.permute(0, 3, 1, 2).to(self.wide).div_(255)
            image = image.sub_(self._mean_3[:, None, None]).div_(self._std_3[:, None, None])
        image_B3HW = image.to(self.dtype, memory_format=torch.channels_last)
        return self._unit(self._model.encode_image(image_B3HW))

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the unit embeddings_BD of RGB PIL images, by the checkpoint's own transform."""
        chunks = ([self.prepare(picture) for picture in chunk] for chunk in _chunks(pictures))
        return torch.cat([self.encode_prepared(chunk) for chunk in chunks])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, long: str = "cut") -> torch.Tensor:
        """Return the unit embeddings_BD of texts.

        Args:
            texts: any texts. The tokenizer decides how it reads emoji, other scripts and blanks.
            long: what happens to a text with too many tokens. "cut" cuts it, keeps its end token
                and warns. "chunk" splits it into windows of whole words and averages their
                embeddings.
        """
        if long not in ("cut", "chunk"):
            raise UsageError(f"long is cut or chunk, not {long!r}.")
        if long == "chunk":
            windows = [self._windows(text) for text in texts]
            unit_WD = self.encode_text([window for parts in windows for window in parts])
            parts = unit_WD.split([len(parts) for parts in windows])
            return torch.stack(
                [p_WD[0] if len(p_WD) == 1 else self._unit(p_WD.mean(0)) for p_WD in parts]
            )
        return self._unit(torch.cat([self._encode_texts(list(chunk)) for chunk in _chunks(texts)]))

    def similarity(self, image_BD: torch.Tensor, text_ND: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarities_BN of unit embeddings."""
        return image_BD @ text_ND.T

    def _unit(self, features_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(features_BD.to(self.wide), dim=-1)

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
        """Return the places of texts that are cut: a window that is one token longer holds more
        than padding."""
        length = self.context_length
        longer_BL = self._tokenizer(texts, context_length=length + 1)[:, :length]
        return (longer_BL != tokens_BL).any(dim=1).nonzero().flatten().tolist()

    def _lost(self, text: str) -> str:
        """Return the last words of a text that is too long: those that do not fit."""
        words = text.split()
        return " ".join(words[self._fitting(words) :])

    def _fitting(self, words: list[str]) -> int:
        """Return how many words fit into the context, counted from the first. The number can be 0.
        """
        low, high = 0, len(words) + 1  # the first `low` words fit, the first `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            head = [" ".join(words[:middle])]
            if self._too_long(head, self._tokenizer(head)):
                high = middle
            else:
                low = middle
        return low

    def _windows(self, text: str) -> list[str]:
        """Return the text in pieces of whole words that fit. A word that does not fit alone is cut.
        """
        if not self._too_long([text], self._tokenizer([text])):
            return [text]
        words, windows = text.split(), []
        while words:
            count = max(1, self._fitting(words[: self.context_length]))
            windows.append(" ".join(words[:count]))
            words = words[count:]
        return windows


def to_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the torch type of a name, such as bfloat16 or bf16, or of a type. Raise UsageError for
    another."""
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    name = SHORT.get(name, name)
    if name not in DTYPES:
        raise UsageError(f"There is no dtype {name!r}.{close_matches(name, DTYPES)}")
    return DTYPES[name]


def to_device(name: str | torch.device) -> torch.device:
    """Return the torch device of a name. Raise UsageError if it cannot be used."""
    name = str(name)
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(
            f"There is no device {shorten(name)!r} here; cpu is always there."
        ) from None
    return torch.device(name)


def context_length(model: nn.Module, tokenizer: Callable[..., torch.Tensor]) -> int:
    """Return the largest number of tokens that both the model and its tokenizer take."""
    # the encoder of a Hugging Face model could take more
    read = getattr(tokenizer, "context_length", None)
    # a CoCa has the context length of its decoder
    most = getattr(model, "text", model).context_length
    return int(min(most, read or most))


def _chunks(items: Sequence) -> list[Sequence]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def pixel_steps(transform: object) -> list[Callable] | None:
    """Return the steps of a torchvision transform that end in an 8-bit image, if only scaling and
    normalising follow. Otherwise return None."""
    steps = getattr(transform, "transforms", [])
    ends = [type(step).__name__.removeprefix("Maybe") for step in steps[-2:]]
    return list(steps[:-2]) if ends == ["ToTensor", "Normalize"] else None
