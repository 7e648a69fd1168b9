"""The pipeline of the embedded generator, in two stages.

A prior samples a small map of features and colours from the text. A U-Net samples latents from the
map and the text. A VAE decodes them. The parts are classes of diffusers and transformers, except
the reader.

Shapes: B images, L tokens, D channels of text, K channels of a map, C channels of latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import UsageError
from . import BATCH, METHOD, STEPS
from .conditions import conditions
from .prior import sampled
from .reader import MapReader
from .styles import STYLES, USUAL, labels_of, with_style

Generators = torch.Generator | Sequence[torch.Generator] | None


class MiniPipeline(DiffusionPipeline):
    """Draw images from text by two diffusion models, as unCLIP (Ramesh et al. 2022) and Würstchen
    (Pernias et al. 2024) do.

    Args:
        vae: the VAE that decodes latents to images.
        text_encoder: the text encoder of the prompt.
        tokenizer: the tokenizer of the text encoder.
        prior: the model that predicts the map from a noisy map and the text.
        prior_scheduler: the scheduler of the map.
        unet: the model that predicts v of the latents from the map, the text and the style.
        scheduler: the scheduler of the latents, which `clipguide.steer` wraps.
        reader: the model that selects one of several maps. Without it, the first map is used.
    """

    default_method, default_batch, default_steps = METHOD, BATCH, STEPS
    prompt_first = True  # the order of the halves of a batch with classifier-free guidance
    model_cpu_offload_seq = "text_encoder->prior->reader->unet->vae"
    _optional_components = ["reader"]
    _callback_tensor_inputs = ["latents", "maps"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        prior: PixArtTransformer2DModel,
        prior_scheduler: FlowMatchEulerDiscreteScheduler,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        reader: MapReader | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            prior=prior,
            prior_scheduler=prior_scheduler,
            unet=unet,
            scheduler=scheduler,
            reader=reader,
        )
        self.map_input = nn.Identity()  # the maps pass through it, so that a hook can move them
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def encode_prompt(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (hidden states_BLD, mask_BL) of prompts. They are cut at the longest length that
        the tokenizer allows."""
        tokens = self.tokenizer(
            list(prompts),
            padding="longest",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        device = self._execution_device
        lengths = (tokens.input_ids != self.tokenizer.pad_token_id).sum(1) + 1
        mask_BL = torch.arange(tokens.input_ids.shape[1]) < lengths[:, None]
        hidden_BLD = self.text_encoder(tokens.input_ids.to(device)).last_hidden_state
        return hidden_BLD, mask_BL.to(device)

    def draw_maps(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        *,
        steps: int,
        guidance_scale: float,
        candidates: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
    ) -> Tensor:
        """Return maps_BKhw of prompts, which the prior samples (`prior.sampled`). It samples
        `candidates` maps for each prompt. The reader selects the one that fits the prompt best.
        """
        guided, many = guidance_scale > 1, candidates if self.reader is not None else 1
        hidden, mask = self.encode_prompt([*prompts, *negatives] if guided else prompts)
        hidden, mask = (a.repeat_interleave(many, 0) for a in (hidden, mask))
        config, device = self.prior.config, self._execution_device
        side, channels = config.sample_size, config.in_channels

        def noise() -> Tensor:
            shape = (len(prompts), many * channels, side, side)
            drawn = randn_tensor(shape, generator=generator, device=device, dtype=self.prior.dtype)
            return drawn.view(-1, channels, side, side)

        x = sampled(
            self.prior,
            self.prior_scheduler,
            noise,
            (hidden, mask),
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
        )
        if many == 1:
            return x
        score_BN = self.reader(x, hidden[: len(x)], mask[: len(x)]).view(-1, many)
        return x.view(-1, many, *x.shape[1:])[torch.arange(len(score_BN)), score_BN.argmax(1)]

    def prepare_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        generator: Generators = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Return noise_BChw, or the given latents, at the first noise level of the scheduler."""
        factor = self.vae_scale_factor
        shape = (batch_size, self.vae.config.latent_channels, height // factor, width // factor)
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif latents.shape != shape:
            raise UsageError(f"latents must have the shape {shape}, not {tuple(latents.shape)}.")
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images_B3HW, in [-1, 1], that latents_BChw decode to."""
        config = self.vae.config
        mean, deviation = (
            torch.tensor(x).to(latents).view(1, -1, 1, 1)
            for x in (config.latents_mean, config.latents_std)
        )
        latents = latents * deviation / config.scaling_factor + mean
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 3.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        maps: Tensor | None = None,
        style: str | None = None,
        prior_num_inference_steps: int = 8,
        prior_eta: float = 1.0,
        map_candidates: int = 4,
        map_guidance_scale: float = 3.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            prompt: one prompt or a list.
            height: the height in pixels, a multiple of 16; by default that of the VAE's training.
            width: the width in pixels, as for `height`.
            num_inference_steps: the number of steps of the U-Net.
            guidance_scale: the guidance scale of the prior; 1 is no guidance.
            negative_prompt: what the image should not show, for the prior and the U-Net.
            num_images_per_prompt: the number of images of each prompt.
            eta: the η of DDIM, from 0 (deterministic) to 1.
            generator: one generator, or a list with one for each image.
            latents: the initial noise_BChw.
            maps: maps_BKhw, in place of those that the prior samples.
            style: one of STYLES. By default, it is the style that the prompt names, or a random one
                of USUAL for each image. "any" leaves the style to the models.
            prior_num_inference_steps: the number of steps of the prior.
            prior_eta: the share of new noise in each step of the prior, from 0 to 1.
            map_candidates: the number of maps for each image, of which the reader selects one.
            map_guidance_scale: the guidance scale of the U-Net, for the map and the text; 1 is no
                guidance.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether to return an ImagePipelineOutput instead of a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)`.
            callback_on_step_end_tensor_inputs: the names of its tensors: "latents", "maps".

        Returns:
            The images.

        Raises:
            UsageError: a size, a style or the number of generators is not possible.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [p for p in prompts for _ in range(num_images_per_prompt)]
        negatives = negative_prompt or ""
        negatives = (
            [negatives] * len(prompts)
            if isinstance(negatives, str)
            else [n for n in negatives for _ in range(num_images_per_prompt)]
        )
        side = self.vae.config.sample_size
        height, width = height or side, width or side
        self._check(prompts, negatives, height, width, generator)
        if map_candidates < 1:
            raise UsageError(f"map_candidates must be 1 or more, not {map_candidates}.")
        for name, share in (("eta", eta), ("prior_eta", prior_eta)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} must be between 0 and 1, not {share}.")
        self._guidance_scale, self._interrupt = guidance_scale, False
        usual = USUAL if maps is None else ("any",)  # a given map already has a style
        labels = labels_of(prompts, style, usual, generator)
        said = [with_style(p, STYLES[k]) for p, k in zip(prompts, labels)]
        if maps is None:
            maps = self.draw_maps(
                said,
                negatives,
                steps=prior_num_inference_steps,
                guidance_scale=guidance_scale,
                candidates=map_candidates,
                eta=prior_eta,
                generator=generator,
            )
        device = self._execution_device
        maps = maps.to(device, self.unet.dtype)
        label_B = torch.tensor(labels, device=device)
        guided = map_guidance_scale > 1
        text = self.encode_prompt([*said, *negatives] if guided else said)
        latents = self.prepare_latents(len(prompts), height, width, generator, latents)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        extra = self.prepare_extra_step_kwargs(generator, eta)
        with self.progress_bar(total=len(timesteps)) as bar:
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    continue
                output = self._denoise(latents, t, maps, text, label_B, map_guidance_scale)
                latents = self.scheduler.step(output, t, latents, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "maps": maps}
                    wanted = {k: tensors[k] for k in callback_on_step_end_tensor_inputs}
                    given = callback_on_step_end(self, i, t, wanted)
                    latents, maps = given.pop("latents", latents), given.pop("maps", maps)
                bar.update()
        image = latents
        if output_type != "latent":
            image = self.image_processor.postprocess(self.decode(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    def prepare_extra_step_kwargs(self, generator: Generators, eta: float) -> dict[str, object]:
        """Return the additional arguments that this scheduler's `step` takes.

        With zero terminal SNR and eta 1, nothing of the old noise is kept: 1 - alpha - sigma² is 0.
        If rounding makes it negative, its square root is NaN.
        """
        eta = min(eta, 1 - 1e-4)
        taken = inspect.signature(self.scheduler.step).parameters
        return {k: v for k, v in (("eta", eta), ("generator", generator)) if k in taken}

    def _denoise(
        self,
        latents: Tensor,
        t: Tensor,
        maps: Tensor,
        text: tuple[Tensor, Tensor],
        label_B: Tensor,
        scale: float,
    ) -> Tensor:
        """Return the output of the U-Net with classifier-free guidance.

        The text is (hidden states, mask) of the prompts, followed by those of the negative prompts
        if the scale is above 1.
        """
        guided, maps = scale > 1, self.map_input(maps)
        if guided:
            maps = torch.cat([maps, torch.zeros_like(maps)])
            label_B = torch.cat([label_B, torch.zeros_like(label_B)])
        x = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        under = torch.nn.functional.interpolate(maps, x.shape[-2:], mode="nearest")
        output = self.unet(
            torch.cat([x, under], 1),
            t,
            **conditions(maps, *text, label_B, len(STYLES)),
            return_dict=False,
        )[0]
        if guided:
            told, untold = output.chunk(2)
            output = untold + scale * (told - untold)
        return output

    def _check(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        height: int,
        width: int,
        generator: Generators,
    ) -> None:
        factor = self.vae_scale_factor
        if height % factor or width % factor:
            raise UsageError(f"height and width must be multiples of {factor}.")
        if len(negatives) != len(prompts):
            raise UsageError("There must be one negative prompt, or one for each prompt.")
        if isinstance(generator, Sequence) and len(generator) != len(prompts):
            raise UsageError(f"There are {len(generator)} generators for {len(prompts)} images.")
