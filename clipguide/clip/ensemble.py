"""Use several CLIPs as one: `load_clip("0.7*mini+0.3*mini-judge")` makes an `Ensemble`.

Shapes: B images or texts, N texts, 3 channels, H rows, W columns, D the width of the embedding.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property, reduce

import torch
from PIL import Image

from ..errors import UsageError
from .base import Clip, to_dtype


class Ensemble(Clip):
    """Several CLIPs whose cosine similarities are averaged. It works wherever a Clip does.

    The unit embedding is the concatenation of √w·v of each member, with Σ w = 1. A cosine is
    therefore exactly the weighted mean of the cosines of the members.

    `logit_scale` and `logit_bias` are the weighted means of those of the members. If the scales of
    the members are equal, the logits are exactly the weighted mean of their logits. `image_size` is
    the largest of the members, and `context_length` the smallest. `dtype` is the type to which
    their dtypes promote. Results are on the device of the first member. `preprocess` is a tuple
    with one entry for each member.

    Args:
        members: at least two CLIPs.
        weights: one number from 0 for each member; all equal if None.
        name: the name of the ensemble; made from the names of the members if None.

    Raises:
        UsageError: there are fewer than two members, or a weight is negative or not finite, or all
            weights are 0.
    """

    def __init__(
        self,
        members: Sequence[Clip],
        *,
        weights: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        self.members = tuple(members)
        self.weights = _normalised(weights, len(self.members))
        self.name = name or "+".join(
            f"{weight:g}*{member.name}"
            for weight, member in zip(self.weights, self.members, strict=True)
        )
        self.device = self.members[0].device
        self.dtype = reduce(torch.promote_types, (member.dtype for member in self.members))
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.embed_dim = sum(member.embed_dim for member in self.members)
        self.image_size = max(member.image_size for member in self.members)
        self.context_length = min(member.context_length for member in self.members)
        self.logit_scale = self._mean(member.logit_scale for member in self.members)
        self.logit_bias = self._mean(member.logit_bias for member in self.members)
        self.preprocess = tuple(member.preprocess for member in self.members)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 digest of the fingerprints and weights of the members, in order."""
        return self._digest([member.fingerprint for member in self.members])

    @property
    def image_fingerprint(self) -> str:
        """Return the sha256 digest of everything that changes the embedding of an image."""
        return self._digest([member.image_fingerprint for member in self.members])

    def _digest(self, fingerprints: list[str]) -> str:
        return hashlib.sha256(json.dumps([fingerprints, self.weights]).encode()).hexdigest()

    @property
    def resize_mode(self) -> str:
        """Return the resize mode of the first member."""
        return self.members[0].resize_mode

    def astype(self, dtype: str) -> Ensemble:
        """Return a copy that computes in another dtype. Its fingerprint is the same."""
        _ = self.fingerprint
        other = copy.copy(self)
        other.members = tuple(member.astype(dtype) for member in self.members)
        other.dtype = to_dtype(dtype)
        other.wide = torch.promote_types(other.dtype, torch.float32)
        return other

    def compile(self) -> None:
        """Compile the image encoders with torch.compile, at the first batch of each size."""
        for member in self.members:
            member.compile()

    def encode_image(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the unit embeddings_BD of images in [0, 1] of any size. It is differentiable."""
        return self._join(lambda member: member.encode_image(image_B3HW))

    def prepare(self, picture: Image.Image) -> tuple:
        """Return what `prepare` of each member returns for an image."""
        return tuple(member.prepare(picture) for member in self.members)

    def encode_prepared(self, prepared: Sequence[tuple]) -> torch.Tensor:
        """Return the unit embeddings_BD of images that `prepare` has transformed."""
        by_member = iter(zip(*prepared, strict=True))
        return self._join(lambda member: member.encode_prepared(next(by_member)))

    def encode_text(self, texts: Sequence[str], *, long: str = "cut") -> torch.Tensor:
        """Return the unit embeddings_BD of texts.

        Each member cuts a long text, or splits it into windows, by its own context length.
        """
        return self._join(lambda member: member.encode_text(texts, long=long))

    def _join(self, encode: Callable[[Clip], torch.Tensor]) -> torch.Tensor:
        parts = [
            math.sqrt(weight) * encode(member).to(self.device, self.wide)
            for weight, member in zip(self.weights, self.members, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def _mean(self, values) -> float:
        return math.fsum(w * value for w, value in zip(self.weights, values, strict=True))


def _normalised(weights: Sequence[float] | None, number: int) -> tuple[float, ...]:
    """Return weights with the sum 1 for this number of members."""
    if number < 2:
        raise UsageError("An ensemble needs at least two CLIPs, as in 0.7*mini+0.3*mini-judge.")
    weights = [1.0] * number if weights is None else [float(weight) for weight in weights]
    if len(weights) != number:
        raise UsageError(f"There are {len(weights)} weights for an ensemble of {number} CLIPs.")
    total = math.fsum(weights)
    if min(weights) < 0 or not 0 < total < math.inf:
        raise UsageError(
            "The weights of an ensemble must be finite numbers from 0 on, and not all 0, not "
            f"{' and '.join(f'{weight:g}' for weight in weights)}."
        )
    return tuple(weight / total for weight in weights)
