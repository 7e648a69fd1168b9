"""The community pipeline `clip_guided_stable_diffusion_img2img`, with the same arguments, on
clipguide.

    pipe = DiffusionPipeline.from_pretrained(
        "a Stable Diffusion 1 or 2", custom_pipeline="…/clip_guided_img2img.py",
        trust_remote_code=True, clip_model=CLIPModel.from_pretrained(…),
        feature_extractor=CLIPImageProcessor.from_pretrained(…),
    )
    pipe("a red fox", image=picture, strength=0.75, clip_guidance_scale=100).images[0]

`strength` is the share of the steps that are drawn again. `clip_guidance_scale` is as in
clip_guided.py.
"""

from __future__ import annotations

import warnings

import torch
from clipguide.pipelines.community import ClipGuided
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.image_processor import PipelineImageInput
from PIL import Image

from clipguide.errors import ClipguideWarning, UsageError


class CLIPGuidedStableDiffusionImg2Img(ClipGuided, StableDiffusionImg2ImgPipeline):
    """StableDiffusionImg2ImgPipeline guided by a `clip_model` with its `feature_extractor`."""

    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        image: PipelineImageInput | None = None,
        strength: float = 0.8,
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
        """Draw images like the community pipeline, with a negative prompt in addition.

        PIL images are resized to height x width, by default the size of the model. `latents` are
        ignored, as in the community pipeline.

        Raises:
            UsageError: there is no image.
        """
        if image is None:
            raise UsageError("There is no image to begin with: give image=…")
        if latents is not None:
            warnings.warn(
                "latents are ignored: the image gives them.", ClipguideWarning, stacklevel=2
            )
        text = prompt if clip_prompt is None else clip_prompt
        with self.guided(
            text, scale=clip_guidance_scale, num_cutouts=num_cutouts, use_cutouts=use_cutouts
        ):
            return super().__call__(
                prompt=prompt,
                image=self._sized(image, height, width),
                strength=strength,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                eta=eta,
                generator=generator,
                negative_prompt=negative_prompt,
                output_type=output_type,
                return_dict=return_dict,
            )

    def _sized(
        self, image: PipelineImageInput, height: int | None, width: int | None
    ) -> PipelineImageInput:
        """Return the images at height x width, by default the size of the model. Tensors and arrays
        do not change."""
        pictures = image if isinstance(image, list) else [image]
        if not isinstance(pictures[0], Image.Image):
            if height or width:
                warnings.warn(
                    "height and width are ignored: only a PIL image is resized.",
                    ClipguideWarning,
                    stacklevel=3,
                )
            return image
        own = self.unet.config.sample_size
        rows, columns = (own, own) if isinstance(own, int) else own
        height = height or rows * self.vae_scale_factor
        width = width or columns * self.vae_scale_factor
        return [self.image_processor.resize(picture, height, width) for picture in pictures]
