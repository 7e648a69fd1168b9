"""Objectives: image_B3HW in [0, 1] -> loss_B, one loss an image, lower is better.

They add and scale: `Similarity(clip, "a red fox") + 0.1 * TotalVariation()`. No objective sums or
averages over the batch; only the driver that takes the gradient does.

Shapes: B images, 3 channels, H rows, W columns, N views, P parts of a prompt, D of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image

from .clip import Clip
from .errors import ClipguideError
from .prompts import Prompt, parse
from .views import Cutouts

Generators = Sequence[torch.Generator]


class Objective:
    """The base of all. `generators`, one an image, feed what is random in an objective; without
    them every image gets a new one of seed 0, so that a call repeats."""

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Generators | None = None
    ) -> torch.Tensor:
        raise NotImplementedError

    def leaves(self) -> Iterator[Objective]:
        """The objectives that this one is made of, itself if of none."""
        yield self

    def __add__(self, other: Objective) -> Objective:
        return _Sum(self, other) if isinstance(other, Objective) else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return _Scaled(self, float(factor))

    __rmul__ = __mul__


class _Sum(Objective):
    def __init__(self, first: Objective, second: Objective) -> None:
        self.first, self.second = first, second

    def __call__(self, image_B3HW, generators=None):
        return self.first(image_B3HW, generators) + self.second(image_B3HW, generators)

    def leaves(self):
        yield from self.first.leaves()
        yield from self.second.leaves()


class _Scaled(Objective):
    def __init__(self, objective: Objective, factor: float) -> None:
        self.objective, self.factor = objective, factor

    def __call__(self, image_B3HW, generators=None):
        return self.factor * self.objective(image_B3HW, generators)

    def leaves(self):
        yield from self.objective.leaves()


class Similarity(Objective):
    """How far an image is from its prompt in a CLIP's space.

    `prompts` is one prompt for all images, or a list: with k times as many images as prompts, the
    first k belong to the first prompt, as in diffusers. The loss is a mean over `views` (the whole
    image if None) and over the parts of a prompt by weight, a part of negative weight repels:
    Σ w·d(u, t) / Σ |w|, with d from KINDS.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: str | Prompt | Sequence[str | Prompt],
        *,
        views: Cutouts | None = Cutouts(),  # noqa: B008 (frozen)
        kind: str = "spherical",
    ) -> None:
        if isinstance(prompts, (str, Prompt)):
            prompts = [prompts]
        if not prompts:
            raise ClipguideError("There are no prompts to be similar to.")
        if kind not in KINDS:
            raise ClipguideError(f"Similarity is one of {', '.join(KINDS)}, not {kind!r}.")
        self.clip, self.views, self._distance = clip, views, KINDS[kind]
        self.prompts = tuple(parse(item) if isinstance(item, str) else item for item in prompts)
        self._text_BPD, self._weight_BP = _encode(clip, self.prompts)

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Generators | None = None
    ) -> torch.Tensor:
        batch = len(image_B3HW)
        if self.views is None:
            views, number = image_B3HW, 1
        else:
            generators = generators or fresh_generators(batch)
            views = self.views(image_B3HW, generators, size=self.clip.image_size)
            number = len(self.views)
        unit_BND = self.clip.encode_image(views).unflatten(0, (batch, number))
        return self._over_parts(
            batch, lambda text_BD: self._distance(unit_BND, text_BD[:, None]).mean(1)
        )

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Cosine_B of whole images with their prompts, in [-1, 1]: higher is better."""
        with torch.no_grad():
            return self._cosine(self.clip.encode_image(image_B3HW))

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The same of RGB pictures, through the checkpoint's own transform."""
        return self._cosine(self.clip.encode_pictures(pictures))

    def _cosine(self, unit_BD: torch.Tensor) -> torch.Tensor:
        return self._over_parts(len(unit_BD), lambda text_BD: (unit_BD * text_BD).sum(1))

    def _over_parts(
        self, batch: int, measure: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Weighted sum_B over parts, one after the other: the padding of a prompt with fewer parts
        than its neighbours changes no bit."""
        times, rest = divmod(batch, len(self.prompts))
        if rest or not times:
            raise ClipguideError(
                f"{len(self.prompts)} prompts do not divide {batch} images: give one prompt for "
                "all, or one for each."
            )
        text_BPD = self._text_BPD.repeat_interleave(times, 0)
        weight_BP = self._weight_BP.repeat_interleave(times, 0)
        return sum(
            measure(text_BD) * weight_B
            for text_BD, weight_B in zip(text_BPD.unbind(1), weight_BP.unbind(1), strict=True)
        )


class TotalVariation(Objective):
    """Mean squared difference of neighbouring pixels, down and across (Rudin et al. 1992, squared
    as in Mahendran & Vedaldi 2015, beta = 2)."""

    def __call__(self, image_B3HW, generators=None):
        down = (image_B3HW[..., 1:, :] - image_B3HW[..., :-1, :]).square()
        across = (image_B3HW[..., 1:] - image_B3HW[..., :-1]).square()
        return down.flatten(1).mean(1) + across.flatten(1).mean(1)


class Range(Objective):
    """Mean squared distance of the pixels from [0, 1]."""

    def __call__(self, image_B3HW, generators=None):
        return (image_B3HW - image_B3HW.clamp(0, 1)).square().flatten(1).mean(1)


def fresh_generators(number: int) -> list[torch.Generator]:
    """Generators that all begin alike, so that an image's views do not depend on its place."""
    return [torch.Generator().manual_seed(0) for _ in range(number)]


def _encode(clip: Clip, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """text_BPD and weight_BP with Σ_P |weight| = 1, padded with weights of 0.

    Texts are encoded one at a time: the bits of one do not depend on its neighbours.
    """
    texts = dict.fromkeys(part.text for prompt in prompts for part in prompt.parts)
    unit_D = {text: clip.encode_text([text])[0] for text in texts}
    most = max(len(prompt.parts) for prompt in prompts)
    text_BPD = torch.zeros(len(prompts), most, clip.embed_dim, device=clip.device)
    text_BPD = text_BPD.to(next(iter(unit_D.values())).dtype)
    weight_BP = text_BPD.new_zeros(len(prompts), most)
    for b, prompt in enumerate(prompts):
        for p, part in enumerate(prompt.parts):
            text_BPD[b, p], weight_BP[b, p] = unit_D[part.text], part.weight
    return text_BPD, weight_BP / weight_BP.abs().sum(1, keepdim=True)


def _spherical(unit: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """2·asin²(‖u − t‖/2), half the squared angle (spherical_dist_loss of Crowson, k-diffusion)."""
    chord = (unit - text).square().sum(-1).clamp(1e-12, 4 - 1e-6).sqrt()
    return 2 * (chord / 2).asin().square()


def _dot(unit: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """1 − cos."""
    return 1 - (unit * text).sum(-1)


KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "spherical": _spherical,
    "dot": _dot,
}
