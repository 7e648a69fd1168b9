"""Best-of: draw n candidates of each picture, keep the best. The floor for every other method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import ClipguideError, UsageError
from ..images import to_tensor
from .method import Method

STRIDE = 1_000_000  # candidate k of the picture of seed s has the seed s + k·stride


@dataclass(frozen=True, kw_only=True)
class BestOf(Method):
    """`number` candidates of each picture, ranked by the guide (by the objective where it has no
    prompts). Each is drawn in the batch that the pipeline is called with: unsteered, or by `each`,
    a step method that repeats no steps."""

    name: ClassVar[str] = "best-of"
    called: ClassVar[bool] = True

    number: int = 4
    each: Method | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "number")
        if self.each is not None and (self.each.called or getattr(self.each, "travel", 1) > 1):
            raise UsageError(f"{self.each.name}, as it is set, cannot draw each of best-of.")

    def check(self, pipe: object) -> None:
        if self.each is not None:
            self.each.check(pipe)

    @property
    def candidates(self) -> int:
        return self.number

    def call(self, steering, **settings):
        if settings.get("latents") is not None:
            raise UsageError("best-of draws its own latents: leave `latents` out.")
        if settings.get("return_dict") is False or settings.get("output_type") == "latent":
            raise UsageError("best-of needs pictures: no output_type='latent', no return_dict.")
        generator, kept, best_B = settings.get("generator"), None, None
        for k in range(self.number):
            output = steering.sample(
                **{**settings, "generator": reseeded(generator, k)}, by=self.each
            )
            if not hasattr(output, "images"):
                raise ClipguideError(f"{type(steering.pipe).__name__} makes no pictures to rank.")
            score_B = steering.score(_tensor(output.images))
            steering.report.candidates.append(score_B)
            if kept is None:
                kept, best_B = output, score_B
                continue
            better = (score_B > best_B).tolist()
            chosen = [new if b else old for b, new, old in zip(better, output.images, kept.images)]
            if isinstance(kept.images, torch.Tensor):
                kept.images = torch.stack(chosen)
            elif isinstance(kept.images, list):
                kept.images = chosen
            else:
                kept.images[better] = output.images[better]
            best_B = torch.maximum(score_B, best_B)
        return kept


def reseeded(
    generator: torch.Generator | Sequence[torch.Generator] | None, k: int
) -> torch.Generator | list[torch.Generator] | None:
    """The generators of candidate k: as they are for 0, new ones `k` strides on for others."""
    if generator is None or k == 0:
        return generator
    if not isinstance(generator, torch.Generator):
        return [reseeded(g, k) for g in generator]
    new = torch.Generator(generator.device)
    return new.manual_seed((generator.initial_seed() + k * STRIDE) % 2**63)


def _tensor(images: object) -> torch.Tensor:
    """image_B3HW of what a pipeline returns: a tensor, an array (B, H, W, 3) or pictures."""
    if isinstance(images, torch.Tensor):
        return images
    if isinstance(images, list):
        return to_tensor(images)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def restarted(
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> torch.Generator | list[torch.Generator] | None:
    """Copies of generators, in the state that they are in."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        return [restarted(g) for g in generator]
    new = torch.Generator(generator.device)
    new.set_state(generator.get_state())
    return new
