"""The aesthetic score of an image, by a head on the embeddings of a CLIP.

Shapes: B images, N views, 3 channels, H rows, W columns, D of the embedding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from ..clip import Clip
from ..errors import UsageError
from ..views import Cutouts
from .base import Objective
from .features import Encoder
from .weights import load_weights

# places of the linear layers; the dropouts between them do nothing here
MLP_PLACES = (0, 2, 4, 6, 7)
_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")
_Layers = list[tuple[torch.Tensor, torch.Tensor]]


class Aesthetic(Objective):
    """Minus the score of an aesthetic head, averaged over the views.

    Args:
        clip: the CLIP whose unit embeddings the head was trained on.
        path: the weights of the head, in safetensors, or in a pickle with `trust_pickle`. The
            layout is `weight` (1 x D) and `bias`, as in sa_0_4_*_linear.pth of LAION's
            aesthetic-predictor (Schuhmann 2022); or linear layers `layers.0`, `.2`, `.4`, `.6` and
            `.7` without activations, as in *_linearMSE.pth of improved-aesthetic-predictor.
        views: the crops that are scored; the whole image if None.
        trust_pickle: whether the weights may be a pickle.
        chunk: the largest number of views that are encoded at a time.

    Raises:
        UsageError: the layout is another one, or its width is not that of the CLIP.
    """

    def __init__(
        self,
        clip: Clip,
        path: str | os.PathLike,
        *,
        views: Cutouts | None = None,
        trust_pickle: bool = False,
        chunk: int | None = None,
    ) -> None:
        self.clip, self.views = clip, views
        self.encoder = Encoder(clip, views, chunk)
        self.layers = _read(load_weights(path, trust_pickle=trust_pickle), str(path))
        width = self.layers[0][0].shape[1]
        if width != clip.embed_dim:
            raise UsageError(
                f"The aesthetic head {path} reads {width} numbers, and the CLIP {clip.name} gives "
                f"{clip.embed_dim}: it was trained on another CLIP."
            )

    def __call__(self, image_B3HW, generators=None):
        return -self.score_vectors(self.encoder(image_B3HW, generators)).mean(1)

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the score_B of whole images, about 1 to 10; higher is better."""
        with torch.no_grad():
            return self.score_vectors(self.clip.encode_image(image_B3HW))

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the same for RGB PIL images, by the checkpoint's own transform."""
        return self.score_vectors(self.clip.encode_pictures(pictures))

    def score_vectors(self, unit: torch.Tensor) -> torch.Tensor:
        """Return the same for unit embeddings_...D. It is differentiable."""
        for weight, bias in self.layers:
            unit = F.linear(unit, weight.to(unit), bias.to(unit))
        return unit[..., 0]


def _read(weights: dict[str, torch.Tensor], name: str) -> _Layers:
    """Return weight and bias of each linear layer. Raise UsageError for an unknown layout."""
    if set(weights) == {"weight", "bias"}:
        layers = [(weights["weight"], weights["bias"])]
    else:
        matches = [_LAYER.fullmatch(key) for key in weights]
        places = {int(match[1]) for match in matches if match}
        if not all(matches) or tuple(sorted(places)) != MLP_PLACES or len(weights) != 10:
            raise UsageError(
                f"{name} is no aesthetic head in a known layout: `weight` and `bias`, or linear "
                f"`layers` {', '.join(map(str, MLP_PLACES))}, not "
                f"{', '.join(sorted(weights)[:4]) or 'nothing'}."
            )
        layers = [(weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]) for i in MLP_PLACES]
    shapes = [weight.shape for weight, _ in layers]
    fits = all(len(shape) == 2 for shape in shapes) and shapes[-1][0] == 1
    fits = fits and all(one[0] == other[1] for one, other in zip(shapes, shapes[1:]))
    if not fits or any(bias.shape != weight.shape[:1] for weight, bias in layers):
        raise UsageError(f"The layers of the aesthetic head {name} do not fit each other.")
    return layers
