"""Similarity of images to prompts and to images, in a CLIP's space.

Shapes: B images, 3 channels, H rows, W columns, N views, P parts of a prompt, D of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from .. import images
from ..clip import Clip
from ..errors import ClipguideError, UsageError, close_matches
from ..prompts import ImagePart, Part, Prompt, compose
from ..views import Cutouts, Views
from .base import Generators, Objective, times_each
from .features import Encoder, Pictures, Sources, to_image

OnePrompt = str | Prompt | Image.Image | torch.Tensor
Prompts = OnePrompt | Sequence[OnePrompt]


class Similarity(Objective):
    """The distance between an image and its prompt in the embedding space of a CLIP.

    The loss is the mean over the views, and the weighted mean over the parts of a prompt: Σ w·d(u,
    t) / Σ |w|. u is the embedding of a view, t that of a part, and d the distance of `kind`. A part
    of negative weight repels.

    `kind="directional"` compares changes: d(u − u', t − s). u' is the embedding of the same view of
    `source_image`, and s that of `source`, the prompt that describes it.

    Args:
        clip: the CLIP that embeds images and prompts.
        prompts: one prompt for all images, or a list. With k times as many images as prompts, the
            first k images belong to the first prompt, as in diffusers. A prompt is a text, an
            image, or a Prompt, which `clipguide.compose` makes of both.
        views: the crops that are embedded; the whole image if None.
        kind: "spherical", "dot" or "directional".
        source: for "directional", the prompt of the source image.
        source_image: for "directional", one image for all, or a list, as for `prompts`.
        chunk: the largest number of views that are encoded at a time. A small chunk needs less
            memory, and about a third more time.

    Raises:
        UsageError: there is no such kind, or the sources do not fit it.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: Prompts,
        *,
        views: Views | None = Cutouts(),  # noqa: B008 (frozen)
        kind: str = "spherical",
        source: OnePrompt | None = None,
        source_image: Pictures | None = None,
        chunk: int | None = None,
    ) -> None:
        if kind not in KINDS:
            raise UsageError(
                f"There is no kind of similarity {kind!r}.{close_matches(str(kind), KINDS)}"
            )
        self.clip, self.views, self._distance = clip, views, KINDS[kind]
        self._kind, self.chunk = kind, chunk
        self.prompts = as_prompts(prompts)
        self.encoder = Encoder(clip, views, chunk)
        self._text_BPD, self._weight_BP = _encode(clip, self.prompts)
        self._target_BPD, self._source = self._text_BPD, None
        if (kind == "directional") != (source is not None and source_image is not None):
            raise UsageError(
                "A directional similarity, and no other, takes a source (the prompt it starts "
                "from) and a source_image (the image it starts from)."
            )
        if kind == "directional":
            self._source = Sources(source_image)
            self._target_BPD = self._text_BPD - _direction_from(clip, source)
            self._check_directions()

    def __call__(
        self, image_B3HW: torch.Tensor, generators: Generators | None = None
    ) -> torch.Tensor:
        if self._source is None:
            unit_BND = self.encoder(image_B3HW, generators)
        else:
            unit_BND, source_BND = self.encoder.beside(image_B3HW, self._source, generators)
            unit_BND = unit_BND - source_BND
        return self._over_parts(
            self._target_BPD,
            len(image_B3HW),
            lambda target_BD: self._distance(unit_BND, target_BD[:, None]).mean(1),
        )

    def towards(self, prompts: Prompts) -> Similarity:
        """Return the same objective with other prompts.

        Raises:
            UsageError: the objective is directional, so it has a source.
        """
        if self._source is not None or type(self) is not Similarity:
            raise UsageError(f"The prompts of {self} cannot be changed: make another.")
        return Similarity(
            self.clip, prompts, views=self.views, kind=self._kind, chunk=self.chunk
        )

    def __repr__(self) -> str:
        prompts = ", ".join(map(str, self.prompts))
        return f"Similarity({prompts}; {self.clip.name})"

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the cosine_B of whole images with their prompts, in [-1, 1]; higher is better."""
        with torch.no_grad():
            return self.cosine(self.clip.encode_image(image_B3HW))

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the same for RGB PIL images, by the checkpoint's own transform."""
        return self.cosine(self.clip.encode_pictures(pictures))

    def cosine(self, unit_BD: torch.Tensor) -> torch.Tensor:
        return self._over_parts(
            self._text_BPD, len(unit_BD), lambda text_BD: (unit_BD * text_BD).sum(1)
        )

    def _over_parts(
        self,
        vector_BPD: torch.Tensor,
        batch: int,
        measure: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Return the weighted sum_B over parts, one after the other, so that the padding of a
        prompt with fewer parts changes no bit."""
        times = times_each(batch, len(self.prompts), "prompts")
        vector_BPD = vector_BPD.repeat_interleave(times, 0)
        weight_BP = self._weight_BP.repeat_interleave(times, 0)
        return sum(
            measure(vector_BD) * weight_B
            for vector_BD, weight_B in zip(vector_BPD.unbind(1), weight_BP.unbind(1), strict=True)
        )

    def _check_directions(self) -> None:
        length_BP = self._target_BPD.norm(dim=-1)
        if ((length_BP < 1e-4) & (self._weight_BP != 0)).any():
            raise UsageError("The source says the same as a part of a prompt: there is no way to.")


class InitSimilarity(Objective):
    """The distance between an image and the image that it began as, in the space of a CLIP.

    The loss is the mean over `views` of 1 − cos(u, u'), with u and u' of the same view.

    Args:
        clip: the CLIP that embeds the images.
        init: one image for all, or a list, as for the prompts of `Similarity`.
        views: the crops that are embedded; the whole image if None.
        chunk: the largest number of views that are encoded at a time.
    """

    def __init__(
        self,
        clip: Clip,
        init: Pictures,
        *,
        views: Views | None = None,
        chunk: int | None = None,
    ) -> None:
        self.clip, self.views = clip, views
        self._sources, self.encoder = Sources(init), Encoder(clip, views, chunk)

    def __call__(self, image_B3HW, generators=None):
        unit_BND, init_BND = self.encoder.beside(image_B3HW, self._sources, generators)
        return dot(unit_BND, init_BND).mean(1)


def as_prompts(prompts: Prompts) -> tuple[Prompt, ...]:
    """Return one or several parsed prompts. Raise UsageError for another type, ClipguideError for
    no prompts."""
    if isinstance(prompts, torch.Tensor) and prompts.ndim == 4:
        prompts = prompts.unbind()
    elif isinstance(prompts, (str, Prompt, Image.Image, torch.Tensor)):
        prompts = [prompts]
    known = (str, Prompt, Part, ImagePart, Image.Image, torch.Tensor)
    several = prompts if isinstance(prompts, Sequence) else [prompts]
    if odd := [one for one in several if not isinstance(one, known)]:
        raise UsageError(
            "A prompt is a text, a Prompt, or an image: a PIL image or a tensor, not "
            f"{type(odd[0]).__name__}."
        )
    if not several:
        raise ClipguideError("There are no prompts to be similar to.")
    return tuple(map(compose, several))


def _encode(clip: Clip, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return text_BPD and weight_BP with Σ_P |weight| = 1, padded with weights of 0.

    Parts are encoded one at a time, so that the bits of one do not depend on its neighbours.
    """
    parts = dict.fromkeys(
        part.text if isinstance(part, Part) else part for prompt in prompts for part in prompt.parts
    )
    unit_D = {part: _encode_part(clip, part) for part in parts}
    most = max(len(prompt.parts) for prompt in prompts)
    text_BPD = torch.zeros(len(prompts), most, clip.embed_dim, device=clip.device)
    text_BPD = text_BPD.to(next(iter(unit_D.values())).dtype)
    weight_BP = text_BPD.new_zeros(len(prompts), most)
    for b, prompt in enumerate(prompts):
        for p, part in enumerate(prompt.parts):
            key = part.text if isinstance(part, Part) else part
            text_BPD[b, p], weight_BP[b, p] = unit_D[key], part.weight
    return text_BPD, weight_BP / weight_BP.abs().sum(1, keepdim=True)


def _encode_part(clip: Clip, part: str | ImagePart) -> torch.Tensor:
    """Return unit_D of a text, of an image through the checkpoint's transform, or of a tensor."""
    if isinstance(part, str):
        return clip.encode_text([part])[0]
    if isinstance(part.image, Image.Image):
        return clip.encode_pictures([images.load(part.image)])[0]
    with torch.no_grad():
        return clip.encode_image(to_image(part.image)[None])[0]


def _direction_from(clip: Clip, source: OnePrompt) -> torch.Tensor:
    """Return unit_D of a prompt: the weighted mean of its parts."""
    text_BPD, weight_BP = _encode(clip, as_prompts([source]))
    return F.normalize((text_BPD * weight_BP[..., None]).sum(1), dim=-1)[0]


def spherical(unit: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return 2·asin²(‖u − t‖/2), half the squared angle (spherical_dist_loss of Crowson,
    k-diffusion)."""
    chord = (unit - text).square().sum(-1).clamp(1e-12, 4 - 1e-6).sqrt()
    return 2 * (chord / 2).asin().square()


def dot(unit: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return 1 − cos."""
    return 1 - (unit * text).sum(-1)


def _directional(change: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return 1 − cos of the changes of image and text (the directional loss of StyleGAN-NADA, Gal
    et al. 2022, eq. 3; the direction t − s of StyleCLIP, Patashnik et al. 2021, §5).

    The change of the image is divided by √(‖·‖² + 10⁻⁶), so that an image that equals its source
    has a finite gradient, along the wanted direction.
    """
    length = (change.square().sum(-1) + 1e-6).sqrt()
    return 1 - (change * F.normalize(wanted, dim=-1)).sum(-1) / length


KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "spherical": spherical,
    "dot": dot,
    "directional": _directional,
}
