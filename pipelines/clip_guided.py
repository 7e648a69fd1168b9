"""The community pipeline `clip_guided_stable_diffusion`, with the same arguments, on clipguide.

    pipe = DiffusionPipeline.from_pretrained(
        "a Stable Diffusion 1 or 2", custom_pipeline="…/clip_guided.py", trust_remote_code=True,
        clip_model=CLIPModel.from_pretrained(…),
        feature_extractor=CLIPImageProcessor.from_pretrained(…),
    )
    pipe("a red fox", clip_guidance_scale=100, num_cutouts=4).images[0]

It supports every scheduler, batches, ε and v prediction, and takes no backward pass through the
U-Net. `clip_guidance_scale` times 0.002 is the strength of clipguide, so the usual value of 100 is
the default strength of 0.2.
"""

from __future__ import annotations

import torch
from clipguide.pipelines.community import ClipGuided
from diffusers import StableDiffusionPipeline


class CLIPGuidedStableDiffusion(ClipGuided, StableDiffusionPipeline):
    """StableDiffusionPipeline guided by a `clip_model` with its `feature_extractor`."""

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
        """Draw images like the community pipeline, with a negative prompt in addition."""
        text = prompt if clip_prompt is None else clip_prompt
        with self.guided(
            text, scale=clip_guidance_scale, num_cutouts=num_cutouts, use_cutouts=use_cutouts
        ):
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
