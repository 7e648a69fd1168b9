"""Best-of: draw n candidates of each image, keep the best. The floor for every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError
from ...images import to_tensor
from ..contract import Method
from ..generators import reseeded


@dataclass(frozen=True, kw_only=True)
class BestOf(Method):
    """`number` candidates of each image, ranked by −objective. Each is drawn in the batch that the
    pipeline is called with: unsteered, or by `each`, a step method that repeats no steps."""

    name: ClassVar[str] = "best-of"
    by_call: ClassVar[bool] = True
    of_images: ClassVar[bool] = True

    number: int = 4
    each: Method | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(1, "number")
        if self.each is None:
            return
        if not isinstance(self.each, Method):
            raise UsageError(f"`each` is a method, as Shortcut(strength=0.2), not {self.each!r}.")
        if self.each.by_call or self.each.repeats():
            raise UsageError(f"{self.each.name}, as it is set, cannot draw each of best-of.")

    def check(self, pipe: object) -> None:
        if self.each is not None:
            self.each.check(pipe)

    @property
    def candidates(self) -> int:
        return self.number

    def call(self, sampler, **settings):
        if settings.get("latents") is not None:
            raise UsageError("best-of draws its own latents: leave `latents` out.")
        if settings.get("return_dict") is False or settings.get("output_type") == "latent":
            raise UsageError("best-of needs images: no output_type='latent', no return_dict.")
        generator, kept, best_B = settings.get("generator"), None, None
        for k in range(self.number):
            output = sampler.sample(
                **{**settings, "generator": reseeded(generator, k)}, by=self.each
            )
            if not hasattr(output, "images"):
                raise ClipguideError(f"{type(sampler.pipe).__name__} makes no images to rank.")
            score_B = sampler.rank(_tensor(output.images))
            if kept is None:
                kept, best_B = output, score_B
                sampler.candidate(score_B, torch.ones(len(score_B), dtype=torch.bool))
                continue
            better_B = score_B > best_B
            sampler.candidate(score_B, better_B)
            kept.images = _chosen(better_B, output.images, kept.images)
            best_B = torch.maximum(score_B, best_B)
        return kept


def _chosen(better_B: torch.Tensor, new: object, old: object) -> object:
    """The images of both that are better, in the form that the pipeline returns."""
    better = better_B.tolist()
    chosen = [one if b else other for b, one, other in zip(better, new, old, strict=True)]
    if isinstance(old, torch.Tensor):
        return torch.stack(chosen)
    if isinstance(old, list):
        return chosen
    old[better] = new[better]
    return old


def _tensor(images: object) -> torch.Tensor:
    """image_B3HW of what a pipeline returns: a tensor, an array (B, H, W, 3) or PIL images."""
    if isinstance(images, torch.Tensor):
        return images
    if isinstance(images, list):
        return to_tensor(images)
    return torch.from_numpy(images).permute(0, 3, 1, 2)
