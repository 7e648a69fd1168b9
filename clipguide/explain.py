"""Heat maps of the places in an image where a CLIP sees a text.

They use attention for transformers, and features for convolutional encoders.

Shapes: B images, N texts, D of the embedding, 3 channels, C features, H rows, W columns, A heads, L
tokens, Q queries. Heat is in [0, 1].
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from .clip import Clip, resize
from .clip.ensemble import Ensemble
from .errors import ClipguideError, UsageError
from .images import load, to_tensor

_ATTENTION = "scaled_dot_product_attention"
_LOCK = threading.RLock()
STAGES = 3  # stages, from the last on: three locate best (tests/test_explain.py)
COLD, HOT = (217, 30, 24), (255, 235, 59)  # red at half the heat, yellow at the full heat


def heat_maps(
    clip: Clip,
    pictures: Sequence[Image.Image],
    text_ND: torch.Tensor,
    *,
    contrast: bool = True,
) -> torch.Tensor:
    """Return map_BNHW in [0, 1]: how much each place of each image supports each text.

    H = W = `clip.image_size`. The map covers what the encoder sees after resize and crop. Each map
    is scaled to its own range. It is 0 everywhere if no place supports its text.

    Transformers use the gradient-weighted attention of Chefer et al. 2021 (eqs. 5 and 6).
    Convolutional encoders use Grad-CAM (Selvaraju et al. 2017, eqs. 1 and 2) of the last features,
    multiplied by LayerCAM (Jiang et al. 2021, eqs. 5 to 7) of the two finer stages before them. The
    map of an Ensemble is the weighted mean of the maps of its members.

    Args:
        clip: the CLIP.
        pictures: PIL images.
        text_ND: the unit embeddings of the texts, by the same CLIP.
        contrast: whether each map shows how its text differs from the mean of all texts. A single
            text is always used as it is.

    Raises:
        UsageError: there is no image or no text, or the width of text_ND is not that of the CLIP.
        ClipguideError: the encoder has neither attention nor features that can be read.
    """
    if not len(pictures):
        raise UsageError("There is no image to explain.")
    if text_ND.ndim != 2 or not len(text_ND) or text_ND.shape[1] != clip.embed_dim:
        raise UsageError(
            f"The texts to explain by are vectors of {clip.embed_dim} numbers each, not a tensor "
            f"of shape {tuple(text_ND.shape)}: make them with encode_text of the same CLIP."
        )
    if contrast and len(text_ND) > 1:
        text_ND = text_ND - text_ND.mean(0)
    return torch.stack([_maps(clip, picture, text_ND) for picture in pictures])


def overlay(
    picture: Image.Image, map_HW: torch.Tensor, *, resize_mode: str = "squash", opacity: float = 0.8
) -> Image.Image:
    """Return the image in grey with its heat map over it, from transparent over red to yellow.

    `resize_mode` is `clip.resize_mode`: how the CLIP fits an image into its square. The map is
    placed accordingly, and what "shortest" crops off gets no heat.
    """
    picture = load(picture)
    heat_HW1 = _lay(map_HW.detach().float().cpu(), picture.size, resize_mode)[..., None]
    low, high = np.float32(COLD), np.float32(HOT)
    colour_HW3 = low + (high - low) * (2 * heat_HW1 - 1).clip(0, 1)
    grey_HW3 = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    alpha_HW1 = opacity * (2 * heat_HW1).clip(0, 1)
    mixed_HW3 = grey_HW3 * (1 - alpha_HW1) + colour_HW3 * alpha_HW1
    return Image.fromarray(mixed_HW3.clip(0, 255).round().astype(np.uint8))


@contextmanager
def explicit_attention(keep: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Return a context in which torch's scaled_dot_product_attention is computed explicitly in this
    thread, and `keep` is called with each probabilities_BAQL that has a gradient.

    The function is global in the process. Other threads run the original, but wait to enter this
    context until it is left. The original is always restored.
    """
    owner = threading.get_ident()
    with _LOCK:
        original = getattr(F, _ATTENTION)

        def attention(query, key, value, *args, **kwargs):
            if threading.get_ident() != owner:
                return original(query, key, value, *args, **kwargs)
            probability, value = _probabilities(query, key, value, *args, **kwargs)
            if probability.requires_grad:
                keep(probability)
            return probability @ value

        setattr(F, _ATTENTION, attention)
        try:
            yield
        finally:
            setattr(F, _ATTENTION, original)


def _probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities_BAQL with which scaled_dot_product_attention weights its values. The
    arguments are the same, without the dropout, which an encoder in evaluation mode does not have.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        attn_mask = attn_mask.to(query.device)
    logits = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        else:
            logits = logits + attn_mask
    return logits.softmax(-1), value


@dataclass
class _Seen:
    """The activations of an encoder for one image: the last features_1CHW of each side with their
    inputs, in order, and the probabilities_1AQL of the attentions."""

    features: dict[int, torch.Tensor] = field(default_factory=dict)
    sources: dict[int, torch.Tensor] = field(default_factory=dict)
    attentions: list[torch.Tensor] = field(default_factory=list)
    before_conv: int = 0  # attentions that came before the last convolution

    def add(self, module: nn.Module, inputs: tuple, output: object) -> None:
        """Record the output of a module; a forward hook. Blocks come after their parts, so the last
        input of a side is that of a whole block or stage, not of one of its branches."""
        if isinstance(module, nn.Conv2d):
            self.before_conv = len(self.attentions)
        side = _side(output)
        if not side:
            return
        self.features.pop(side, None)
        self.features[side] = output
        larger = _side(inputs[0]) if inputs else 0
        if larger > side and larger <= _side(self.sources.get(side, inputs[0])):
            self.sources[side] = inputs[0]

    def stages(self) -> list[torch.Tensor]:
        """Return the last features, and the inputs of their stage and of the one before it; not the
        image itself, whose side no module produced."""
        side = next(reversed(self.features), 0)
        found = [self.features[side]] if side else []
        while len(found) < STAGES and _side(self.sources.get(side)) in self.features:
            found.append(self.sources[side])
            side = _side(found[-1])
        return found

    @property
    def transformer(self) -> bool:
        """Return whether all tokens attend to each other, and no convolution follows."""
        lengths = {p.shape[-1] for p in self.attentions if p.shape[-1] == p.shape[-2]}
        whole = all(len(p) == 1 for p in self.attentions)
        return whole and len(lengths) == 1 and len(self.attentions) > 1 and not self.before_conv


def _side(features: object) -> int:
    """Return the side of a tensor that is one square map of several places, else 0."""
    if not isinstance(features, torch.Tensor) or features.ndim != 4 or not features.requires_grad:
        return 0
    _, _, height, width = _channels_first(features).shape
    return height if height == width > 1 and len(features) == 1 else 0


def _channels_first(features: torch.Tensor) -> torch.Tensor:
    """Return features_1CHW, also from features_1HWC, which Swin and ConvNeXt use inside."""
    _, first, second, third = features.shape
    return features.permute(0, 3, 1, 2) if first == second != third else features


def _maps(clip: Clip, picture: Image.Image, text_ND: torch.Tensor) -> torch.Tensor:
    """Return map_NHW of one image."""
    if clip.resize_mode == "patches":
        raise UsageError(
            f"The CLIP {clip.name} sees images in their own aspect (NaFlex), which cannot be "
            "explained yet: choose one of fixed resolution."
        )
    if isinstance(clip, Ensemble):
        return _mean_maps(clip, picture, text_ND)
    image_13HW = resize(to_tensor([load(picture)]), clip.preprocess, clip.image_size)
    with torch.enable_grad():
        seen, unit_D = _look(clip, image_13HW.requires_grad_())
        cosines_N = text_ND.to(unit_D) @ unit_D
        explain = _relevance if seen.transformer else _features
        maps = [explain(seen, cosine).float() for cosine in cosines_N]
    size = (clip.image_size, clip.image_size)
    return torch.stack([_to_range(_at_size(map_HW, size)) for map_HW in maps]).cpu()


def _mean_maps(clips: Ensemble, picture: Image.Image, text_ND: torch.Tensor) -> torch.Tensor:
    """Return the same for an ensemble, whose vectors are the concatenated vectors of its members.
    """
    if len({member.resize_mode for member in clips.members}) > 1:
        raise UsageError(
            f"The members of {clips.name} crop images differently, so that their heat maps "
            "cannot be laid over each other: explain by one of them."
        )
    parts = text_ND.split([member.embed_dim for member in clips.members], dim=1)
    size = (clips.image_size, clips.image_size)
    total_NHW = torch.zeros(len(text_ND), *size)
    for member, weight, part_ND in zip(clips.members, clips.weights, parts, strict=True):
        maps = _maps(member, picture, part_ND)
        total_NHW += weight * torch.stack([_at_size(map_HW, size) for map_HW in maps])
    return torch.stack([_to_range(map_HW) for map_HW in total_NHW])


def _look(clip: Clip, image_13HW: torch.Tensor) -> tuple[_Seen, torch.Tensor]:
    """Return the activations of the encoder for an image, and its unit vector_D with its graph."""
    seen = _Seen()
    with ExitStack() as stack:
        for module in clip._model.modules():
            stack.callback(module.register_forward_hook(seen.add).remove)
            if isinstance(module, nn.MultiheadAttention):
                hook = module.register_forward_pre_hook(_without_weights, with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(explicit_attention(seen.attentions.append))
        unit_D = clip.encode_image(image_13HW)[0]
    if not seen.transformer and len(seen.stages()) < 2:
        raise ClipguideError(
            f"The image tower of {clip.name} cannot be explained: it shows neither the attention "
            "of torch's scaled_dot_product_attention nor features of two sizes."
        )
    return seen, unit_D


def _without_weights(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Call torch's attention without its weights. With them, it would not call
    scaled_dot_product_attention."""
    return args, {**kwargs, "need_weights": False}


def _relevance(seen: _Seen, cosine: torch.Tensor) -> torch.Tensor:
    """Return heat_HW of the patches: R <- R + mean over the heads of (gradient * probabilities)+,
    R, from the identity on, through the layers (Chefer et al. 2021, eqs. 5 and 6).

    The rows of R are those that the embedding uses: that of the class token, or all rows if the
    tokens are averaged. Attention pooling is a layer with its own queries.
    """
    gradients = torch.autograd.grad(cosine, seen.attentions, retain_graph=True, allow_unused=True)
    length = next(p.shape[-1] for p in seen.attentions if p.shape[-1] == p.shape[-2])
    relevance = torch.eye(length, device=cosine.device)
    read_Q = torch.ones(length, device=cosine.device)
    for probability, gradient in zip(seen.attentions, gradients, strict=True):
        if gradient is None or probability.shape[-1] != len(relevance):
            continue
        weighed_QL = (gradient * probability).detach().float()[0].clamp(min=0).mean(0)
        read_Q = gradient[0].abs().sum((0, 2)).gt(0).float()
        step = weighed_QL @ relevance
        own = probability.shape[-1] == probability.shape[-2]
        relevance = relevance + step if own else step
    heat_L = read_Q @ relevance
    side = max((s for s in seen.features if s * s <= length), default=math.isqrt(length))
    return heat_L[length - side * side :].reshape(side, side)  # class token and registers go first


def _features(seen: _Seen, cosine: torch.Tensor) -> torch.Tensor:
    """Return heat_HW: Grad-CAM of the last features, times LayerCAM of two earlier stages.

    The last features know what is where, but there are few (4 x 4 in mini). LayerCAM of the input
    of their stage, and of the stage before, gives finer and finer edges. The product gradient+ ·
    feature of LayerCAM is computed as (gradient · feature)+. This is the same after a ReLU, and not
    every encoder has one.
    """
    maps = seen.stages()
    gradients = torch.autograd.grad(cosine, maps, retain_graph=True)
    maps_1CHW = [_channels_first(one.detach()).float() for one in maps]
    gradients_1CHW = [_channels_first(one).float() for one in gradients]
    weights_1C11 = gradients_1CHW[0].mean((2, 3), keepdim=True)
    heat_HW = (weights_1C11 * maps_1CHW[0]).sum(1)[0].clamp(min=0)
    for features_1CHW, gradient_1CHW in zip(maps_1CHW[1:], gradients_1CHW[1:]):
        finer_HW = (gradient_1CHW * features_1CHW).clamp(min=0).sum(1)[0]
        heat_HW = _at_size(heat_HW, finer_HW.shape) * finer_HW
        heat_HW = heat_HW / heat_HW.max().clamp(min=torch.finfo(heat_HW.dtype).tiny)
    return heat_HW


def _at_size(map_HW: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(map_HW[None, None], tuple(size), mode="bilinear")[0, 0]


def _to_range(map_HW: torch.Tensor) -> torch.Tensor:
    """Return the heat stretched from 0 to 1; all 0 if it is constant."""
    low, high = map_HW.min(), map_HW.max()
    if not high - low > 1e-6 * high.abs():
        return torch.zeros_like(map_HW)
    return ((map_HW - low) / (high - low)).clamp(0, 1)


def _lay(map_HW: torch.Tensor, size: tuple[int, int], resize_mode: str) -> np.ndarray:
    """Return the map_HW of the square that the encoder saw, placed on the original image."""
    width, height = size
    if resize_mode == "squash":
        return _at_size(map_HW, (height, width)).numpy()
    side = min(size) if resize_mode == "shortest" else max(size)
    square = _at_size(map_HW, (side, side)).numpy()
    left, top = (width - side) // 2, (height - side) // 2
    laid = np.zeros((height, width), dtype=np.float32)
    part = square[max(0, -top) :, max(0, -left) :][:height, :width]
    top, left = max(0, top), max(0, left)
    laid[top : top + part.shape[0], left : left + part.shape[1]] = part
    return laid
