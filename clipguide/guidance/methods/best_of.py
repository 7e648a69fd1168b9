"""Best-of: draw n candidates of each image, and keep the best. Other methods are compared with it.

With `finish` m, all candidates are drawn up to the share `look` of their steps. Their x0 is decoded
and scored, and only the m best of each image are finished. TTSnap (Yu et al. 2025, arXiv
2511.22242) also prunes by x0, with a reward that is trained on such estimates. EvoSearch (He et al.
2025, arXiv 2505.17618) ranks finished images instead, and mutates the states from which the best of
them came. Neither the training nor the mutation is implemented.

The candidates that are finished start again from their seeds, so each is the image that best-of
without `finish` draws. This costs n·look + m runs instead of n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError
from ...images import to_tensor
from ..contract import Method
from ..generators import chosen, ranked, reseeded, restarted

FLAGS = "nsfw_content_detected"  # of the images that a safety checker has seen


@dataclass(frozen=True, kw_only=True)
class BestOf(Method):
    """Draw `number` candidates of each image, and keep the one with the lowest objective.

    Run it with `s(…)`. It takes no `window` and no `every`; `each` can have them. The candidates
    are drawn one after the other, each in a batch of the size of your call.

    Args:
        number: the number of candidates of each image.
        each: the step method that steers each candidate. It must not repeat steps. None does not
            steer.
        finish: the number of candidates that are finished; None finishes all.
        look: with `finish`, the share of the steps after which candidates are scored and dropped,
            above 0 and below 1.
    """

    name: ClassVar[str] = "best-of"
    windowed: ClassVar[bool] = False
    by_call: ClassVar[bool] = True
    of_images: ClassVar[bool] = True

    number: int = 4
    each: Method | None = None
    finish: int | None = None
    look: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(1, "number")
        if self.finish is not None:
            self.whole(1, "finish")
            if self.finish > self.number:
                raise UsageError(f"Of {self.number} candidates {self.finish} cannot be finished.")
        self.at_least(0, "look")
        if not 0 < self.look < 1:
            raise UsageError(f"look must be above 0 and below 1, not {self.look}.")
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
    def needs_gradient(self) -> bool:
        return self.each is not None and self.each.needs_gradient and not self.each.idle

    @property
    def candidates(self) -> int:
        return self.number

    def call(self, sampler, **settings):
        if settings.get("latents") is not None:
            raise UsageError("best-of draws its own latents: leave `latents` out.")
        if settings.get("return_dict") is False or settings.get("output_type") == "latent":
            raise UsageError("best-of needs images: no output_type='latent', no return_dict.")
        kept, best_B = None, None
        for generator in self._generators(sampler, settings):
            output = sampler.sample(**{**settings, "generator": generator}, by=self.each)
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
            if (flags := getattr(output, FLAGS, None)) is not None:
                setattr(kept, FLAGS, _chosen(better_B, flags, getattr(kept, FLAGS)))
            best_B = torch.maximum(score_B, best_B)
        return kept

    def _generators(self, sampler, settings: dict[str, object]) -> Iterator[object]:
        """Yield the generators of each run that is finished: those of each candidate, or with
        `finish` those of the best candidates of each image, by the score of their x0."""
        given = settings.get("generator")
        start = restarted(given)  # the first run draws from those that are given
        if self.finish is None or self.finish == self.number:
            yield given
            yield from (reseeded(start, k) for k in range(1, self.number))
            return
        if not isinstance(given, (torch.Generator, list, tuple)):
            raise UsageError("Candidates are begun again from their seeds: give `generator`.")
        score_KB = torch.stack(
            [
                sampler.preview(
                    until=self.look,
                    by=self.each,
                    **{**settings, "generator": reseeded(start, k) if k else given},
                )
                for k in range(self.number)
            ]
        )
        for k_B in ranked(given, score_KB)[: self.finish]:
            yield chosen(start, k_B)


def _chosen(better_B: torch.Tensor, new: object, old: object) -> object:
    """Return the better image of each pair, in the form that the pipeline returns."""
    better = better_B.tolist()
    chosen = [one if b else other for b, one, other in zip(better, new, old, strict=True)]
    if isinstance(old, torch.Tensor):
        return torch.stack(chosen)
    if isinstance(old, list):
        return chosen
    old[better] = new[better]
    return old


def _tensor(images: object) -> torch.Tensor:
    """Return image_B3HW from a tensor, an array (B, H, W, 3) or PIL images."""
    if isinstance(images, torch.Tensor):
        return images
    if isinstance(images, list):
        return to_tensor(images)
    return torch.from_numpy(images).permute(0, 3, 1, 2)
