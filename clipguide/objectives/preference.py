"""What people prefer: models trained on their choices, each minus its own score.

Shapes: B images, 3 channels, H rows, W columns, L tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from PIL import Image

from ..clip import Clip, load_clip, resize, to_device, to_dtype
from ..clip.fingerprint import open_clip_architecture
from ..errors import ClipguideError, UsageError, close_matches
from ..images import load, to_tensor
from ..prompts import check_text, shorten
from ..views import Cutouts
from .base import Objective, times_each
from .similarity import Prompts, Similarity
from .weights import check_trust, load_weights

HPS_MODEL = "ViT-H-14"
_BLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of ImageReward's transform
_BLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BLIP_SIZE, _BLIP_TOKENS = 224, 35


class Preference(Similarity):
    """Minus `scale` times the cosine of an image and its prompt, by a CLIP that was trained on
    choices of people; over `views` (the whole image if None, as it was trained) and parts as of
    `Similarity`."""

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
        return -self._cosine(self._encoder(image_B3HW, generators).mean(1))

    def _cosine(self, unit_BD: torch.Tensor) -> torch.Tensor:
        return self.scale * super()._cosine(unit_BD)


class PickScore(Preference):
    """Minus PickScore: the logit scale times the cosine similarity, about 20.

    `path` is the folder of its CLIP, PickScore_v1 with the files of its processor. transformers
    reads it. Weights in a pickle need `trust_pickle`.

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
    """Minus HPSv2: the cosine similarity, about 0.2 to 0.3.

    `path` is the state dict of an open_clip `model`, in safetensors, or with `trust_pickle` in a
    pickle such as HPS_v2.1_compressed.pt.

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


class ImageReward(Objective):
    """Minus ImageReward (Xu et al. 2023) of whole images, about −2 to 2 each.

    `path` is its checkpoint ImageReward.pt and `config` the med_config.json beside it, both read
    by its own package, which loads a pickle: so `trust_pickle` must be on. `prompts` are texts, one
    for all images or a list as of `Similarity`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        prompts: str | Sequence[str],
        *,
        config: str | os.PathLike,
        device: str = "cpu",
        trust_pickle: bool = False,
    ) -> None:
        self.prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not self.prompts or not all(isinstance(text, str) for text in self.prompts):
            raise UsageError("ImageReward reads one text, or a list of them.")
        for text in self.prompts:
            check_text(text)
        self.device = to_device(device)
        self._model = _image_reward(path, config, device=device, trust_pickle=trust_pickle)
        self._tokens = self._model.blip.tokenizer(
            list(self.prompts),
            padding="max_length",
            truncation=True,
            max_length=_BLIP_TOKENS,
            return_tensors="pt",
        ).to(self.device)

    def __call__(self, image_B3HW, generators=None):
        return -self._reward(self._prepare(image_B3HW))

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Reward_B of images: higher is better."""
        with torch.no_grad():
            return self._reward(self._prepare(image_B3HW))

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The same of RGB pictures."""
        prepared = [self._prepare(to_tensor([load(picture)])) for picture in pictures]
        with torch.no_grad():
            return self._reward(torch.cat(prepared))

    def _prepare(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Images at the size that it sees, normalised, as its own transform does."""
        config = {"resize_mode": "shortest", "interpolation": "bicubic"}
        image_B3HW = resize(image_B3HW.to(self.device).float(), config, _BLIP_SIZE)
        mean_3, std_3 = (image_B3HW.new_tensor(values) for values in (_BLIP_MEAN, _BLIP_STD))
        return (image_B3HW - mean_3[:, None, None]) / std_3[:, None, None]

    def _reward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        times = times_each(len(image_B3HW), len(self.prompts), "prompts")
        ids_BL, mask_BL = (
            tokens_BL.repeat_interleave(times, 0)
            for tokens_BL in (self._tokens.input_ids, self._tokens.attention_mask)
        )
        return self._model.score_gard(ids_BL, mask_BL, image_B3HW)[:, 0]


def _open_clip(
    path: str | os.PathLike, model: str, *, device: str, dtype: str, trust_pickle: bool
) -> Clip:
    """A Clip of an open_clip architecture with the weights of a file."""
    to_dtype(dtype)
    to_device(device)
    weights = load_weights(path, trust_pickle=trust_pickle)
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        raise UsageError(f"open_clip has no model {model!r}.{close_matches(model, known)}")
    tower, _, transform = open_clip.create_model_and_transforms(model, load_weights=False)
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


def _image_reward(
    path: str | os.PathLike, config: str | os.PathLike, *, device: str, trust_pickle: bool
) -> torch.nn.Module:
    """The model of ImageReward's own package, frozen."""
    for file in (path, config):
        if not os.path.isfile(file):
            raise UsageError(f"There is no file {file} for ImageReward.")
    check_trust(path, trust_pickle=trust_pickle)
    try:
        import ImageReward as package
    except ImportError as error:
        raise ClipguideError(
            f"ImageReward needs its own package, which cannot be imported ({error}): pip install "
            "image-reward, in an environment with the transformers 4 that it was made for."
        ) from error
    model = package.load(str(path), device=device, med_config=str(config))
    return model.eval().requires_grad_(False)
