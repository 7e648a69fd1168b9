"""What the pipelines in the place of diffusers' community pipelines share: a CLIP beside the model,
and the arguments by which people set its guidance."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import CLIPTokenizer

from ..clip.hf import wrap_hf_clip
from ..guidance import Steering, steer
from ..objectives import Similarity
from ..views import Cutouts

SCALE = 1000.0  # clip_guidance_scale, by strength


class ClipGuided:
    """Goes before a Stable Diffusion pipeline's class: its components, and a `clip_model` of
    transformers with its `feature_extractor`, whose tokenizer is the model's if none is given."""

    _optional_components = ["safety_checker", "image_encoder", "tokenizer_clip"]

    def __init__(
        self,
        vae,
        text_encoder,
        clip_model,
        tokenizer,
        unet,
        scheduler,
        feature_extractor,
        tokenizer_clip: CLIPTokenizer | None = None,
        safety_checker=None,
        image_encoder=None,
        requires_safety_checker: bool = False,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(clip_model=clip_model, tokenizer_clip=tokenizer_clip)

    def guided(
        self,
        text: str | Sequence[str],
        *,
        scale: float,
        num_cutouts: int,
        use_cutouts: bool,
    ) -> Steering:
        """The context in which a run of this pipeline is steered towards a text, or one a prompt:
        by scale / 1000 of rms(x0), on cutouts or the whole image."""
        clip = wrap_hf_clip(
            self.clip_model,
            self.feature_extractor,
            self.tokenizer_clip or self.tokenizer,
            name="clip_model",
            device=str(self._execution_device),
        )
        views = Cutouts(number=num_cutouts) if use_cutouts else None
        return steer(self, Similarity(clip, text, views=views), strength=scale / SCALE)
