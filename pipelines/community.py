"""What the replacements of diffusers' community pipelines share: a CLIP as a component, and the
arguments of its guidance."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import CLIPTokenizer

from ..clip.hf import wrap_hf_clip
from ..guidance import Shortcut, Steering, steer
from ..objectives import Similarity
from ..views import Cutouts

STRENGTH = Shortcut.strength / 100  # per unit of clip_guidance_scale, whose usual value is 100


class ClipGuided:
    """A mixin before the class of a Stable Diffusion pipeline. It adds the components `clip_model`,
    of transformers, and `feature_extractor`. The tokenizer is that of the pipeline if none is
    given."""

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
        """Return a context that steers a run of this pipeline towards one text, or one per prompt,
        with the strength scale · 0.002, on cutouts or the whole image."""
        clip = wrap_hf_clip(
            self.clip_model,
            self.feature_extractor,
            self.tokenizer_clip or self.tokenizer,
            name="clip_model",
            device=str(self._execution_device),
        )
        views = Cutouts(number=num_cutouts) if use_cutouts else None
        return steer(self, Similarity(clip, text, views=views), strength=scale * STRENGTH)
