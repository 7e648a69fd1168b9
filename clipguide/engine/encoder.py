"""Encode prepared images to unit vectors, in batches that fit the memory, in bfloat16 if it is
exact enough.

Shapes: B images, F frames, N texts, D the width of the embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from ..clip import Clip
from ..errors import ClipguideError, ClipguideWarning, out_of_memory

BATCH = {"cpu": 16}  # images; with more, the embedded CLIPs no longer fit the processor's cache
OTHER = 256
HOLDS = 1e-3  # largest change of a cosine similarity by bfloat16
CHECKED = 8  # images of the check
WORDS = ("a photo", "a drawing", "an animal", "a person", "a house", "food", "a car", "text")


class Encoder:
    """Encode with one Clip, `batch` images at a time. `bf16` and `compile` are those of an Engine.
    """

    def __init__(self, clip: Clip, *, batch: int | None, bf16: bool, compile: bool) -> None:
        self.clip, self.batch = clip, batch or BATCH.get(clip.device.type, OTHER)
        self.to_check = bf16 and clip.dtype == torch.float32
        self.to_compile = compile
        self.half: Clip | None = None
        self._was_halved = False

    @property
    def dtype(self) -> str:
        """Return the dtype of the vectors: bfloat16 before the check, because nothing is stored
        before it."""
        if self.half is not None or self.to_check:
            return "bfloat16"
        return str(self.clip.dtype).removeprefix("torch.")

    def __call__(self, frames: Sequence[list]) -> torch.Tensor:
        """Return unit vectors_BD of images, each the average over its frames. Raise ClipguideError
        if one image alone does not fit the memory."""
        flat = [frame for image in frames for frame in image]
        if self.to_check:
            self._check(flat[:CHECKED])
        clip, parts, start = self.half or self.clip, [], 0
        if self.to_compile:
            clip.compile()
            self.to_compile = False
        while start < len(flat):
            try:
                parts.append(clip.encode_prepared(flat[start : start + self.batch]))
                start += self.batch
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._halve()
        unit_FD = torch.cat(parts)
        if len(flat) == len(frames):
            return unit_FD
        mean_BD = torch.stack([u.mean(0) for u in unit_FD.split([len(f) for f in frames])])
        return torch.nn.functional.normalize(mean_BD, dim=-1)

    def _halve(self) -> None:
        if self.batch == 1:
            raise ClipguideError(
                f"There is not enough memory for one image of the CLIP {self.clip.name}: take a "
                "smaller one, or free some."
            ) from None
        if not self._was_halved:
            warnings.warn(
                f"{self.batch} images at a time do not fit into the memory; clipguide goes on "
                "with fewer.",
                ClipguideWarning,
                stacklevel=2,
            )
        self._was_halved, self.batch = True, self.batch // 2
        if self.clip.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, prepared: list) -> None:
        """Switch to bfloat16 if it is exact enough. Otherwise warn, and stay in float32."""
        half = self.clip.astype("bfloat16")
        text_ND = self.clip.encode_text(WORDS)
        full_BN, half_BN = (c.encode_prepared(prepared) @ text_ND.T for c in (self.clip, half))
        change = (full_BN - half_BN).abs().max().item()
        if change <= HOLDS:
            self.half = half
        else:
            warnings.warn(
                f"bfloat16 would change cosines of the CLIP {self.clip.name} by {change:.4f}, more "
                f"than {HOLDS}: it goes on in float32.",
                ClipguideWarning,
                stacklevel=2,
            )
        self.to_check = False
