"""The community pipeline `clip_guided_stable_diffusion`, as people call it, on today's libraries.

    pipe = DiffusionPipeline.from_pretrained(
        "a Stable Diffusion 1 or 2", custom_pipeline="…/clip_guided.py", trust_remote_code=True,
        clip_model=CLIPModel.from_pretrained(…),
        feature_extractor=CLIPImageProcessor.from_pretrained(…),
    )
    pipe("a red fox", clip_guidance_scale=100, num_cutouts=4).images[0]

Every scheduler, any batch, ε and v; no backward pass through the U-Net. `clip_guidance_scale` is
clipguide's strength times 1,000, so that the 100 people give is the default strength of 0.1.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from clipguide import Cutouts, Similarity, steer
from clipguide.hf_clip import wrap_hf_clip

SCALE = 1000.0


class CLIPGuidedStableDiffusion(StableDiffusionPipeline):
    """StableDiffusionPipeline guided by a `clip_model` with its `feature_extractor`."""

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

    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        clip_guidance_scale: float = 100.0,
        clip_prompt: str | list[str] | None = None,
        num_cutouts: int = 4,
        use_cutouts: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        negative_prompt: str | list[str] | None = None,
    ):
        """As the community pipeline's, with a negative prompt besides."""
        clip = wrap_hf_clip(
            self.clip_model,
            self.feature_extractor,
            self.tokenizer_clip or self.tokenizer,
            name="clip_model",
            device=str(self._execution_device),
        )
        objective = Similarity(
            clip,
            prompt if clip_prompt is None else clip_prompt,
            views=Cutouts(number=num_cutouts) if use_cutouts else None,
        )
        with steer(self, objective, strength=clip_guidance_scale / SCALE):
            return super().__call__(
                prompt=prompt,
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                eta=eta,
                generator=generator,
                latents=latents,
                negative_prompt=negative_prompt,
                output_type=output_type,
                return_dict=return_dict,
            )
