"""Human preference: CLIPs that were trained on people's choices. The loss is minus their score.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import os

import torch

from ..clip import Clip, load_clip, to_device, to_dtype
from ..clip.fingerprint import open_clip_architecture
from ..errors import ClipguideError, UsageError, close_matches
from ..prompts import shorten
from ..views import Cutouts
from .similarity import Prompts, Similarity
from .weights import load_weights

HPS_MODEL = "ViT-H-14"


class Preference(Similarity):
    """The negative of a score of human preference.

    The score is `scale` times the cosine similarity of an image and its prompt, by a CLIP that was
    trained on choices of people. It is averaged over `views` (by default the whole image, as in
    training) and parts, as in `Similarity`.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: Prompts,
        *,
        scale: float,
        views: Cutouts | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(clip, prompts, views=views, kind="dot", chunk=chunk)
        self.scale = scale

    def __call__(self, image_B3HW, generators=None):
        return -self.cosine(self.encoder(image_B3HW, generators).mean(1))

    def towards(self, prompts: Prompts) -> Preference:
        """Return the preference of the same model for other prompts."""
        return Preference(
            self.clip, prompts, scale=self.scale, views=self.views, chunk=self.chunk
        )

    def cosine(self, unit_BD: torch.Tensor) -> torch.Tensor:
        return self.scale * super().cosine(unit_BD)


class PickScore(Preference):
    """The negative of PickScore, so the loss is about -20.

    PickScore is the logit scale times the cosine similarity, about 20. `path` is a folder that
    transformers reads: the CLIP PickScore_v1 and the files of its processor. Weights in a pickle
    need `trust_pickle`.

    Source: Kirstain et al. 2023, eq. 1.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        prompts: Prompts,
        *,
        views: Cutouts | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        trust_pickle: bool = False,
        chunk: int | None = None,
    ) -> None:
        clip = load_clip(path, device=device, dtype=dtype, trust_pickle=trust_pickle)
        super().__init__(clip, prompts, scale=clip.logit_scale, views=views, chunk=chunk)


class HPSv2(Preference):
    """The negative of HPSv2, so the loss is about -0.3 to -0.2.

    HPSv2 is the cosine similarity, about 0.2 to 0.3. `path` is the state dict of an open_clip
    `model`, in safetensors, or with `trust_pickle` in a pickle such as HPS_v2.1_compressed.pt.
    As in its own code (ResizeMaxSize), an image that is not square is padded, not cut.

    Source: Wu et al. 2023.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        prompts: Prompts,
        *,
        model: str = HPS_MODEL,
        views: Cutouts | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        trust_pickle: bool = False,
        chunk: int | None = None,
    ) -> None:
        clip = _open_clip(path, model, device=device, dtype=dtype, trust_pickle=trust_pickle)
        super().__init__(clip, prompts, scale=1.0, views=views, chunk=chunk)


def _open_clip(
    path: str | os.PathLike, model: str, *, device: str, dtype: str, trust_pickle: bool
) -> Clip:
    """Return the Clip of an open_clip architecture with the weights of a file."""
    to_dtype(dtype)
    to_device(device)
    weights = load_weights(path, trust_pickle=trust_pickle)
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        raise UsageError(f"open_clip has no model {model!r}.{close_matches(model, known)}")
    tower, _, transform = open_clip.create_model_and_transforms(
        model, load_weights=False, image_resize_mode="longest"
    )
    try:
        tower.load_state_dict(weights)
    except RuntimeError as error:
        reason = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise ClipguideError(f"The weights {path} are not those of a {model}: {reason}.") from error
    return Clip(
        tower,
        transform=transform,
        tokenizer=open_clip.get_tokenizer(model),
        name=f"{model} of {path}",
        device=device,
        dtype=dtype,
        architecture=open_clip_architecture(open_clip.get_model_config(model)),
    )
