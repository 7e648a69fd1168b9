"""The pipeline of the embedded generator, in two stages.

A memory returns a small map of features and colours for the text, or a prior samples one. A U-Net
samples latents from the map and the text. A VAE decodes them. The parts are classes of diffusers
and transformers, except the memory.

Shapes: B images, L tokens, D channels of text, K channels of a map, C channels of latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
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
from . import BATCH, CANDIDATES, STEPS
from .conditions import conditions
from .details import Details
from .memory import MapMemory, split
from .names import Named, Scene
from .prior import sampled
from .scenes import together
from .styles import STYLES, USUAL, chosen, labels_of, style_in, with_style

LIKE_NOISE = 0.55  # to the eye: below it, "blue" hardly shows; above it, the pose is lost
Generators = torch.Generator | Sequence[torch.Generator] | None


class MiniPipeline(DiffusionPipeline):
    """Draw images from text by two diffusion models, as unCLIP (Ramesh et al. 2022) and Würstchen
    (Pernias et al. 2024) do. A memory stands in for the first where it knows the object
    (retrieval-augmented diffusion, Blattmann et al. 2022).

    Args:
        vae: the VAE that decodes latents to images.
        text_encoder: the text encoder of the prompt.
        tokenizer: the tokenizer of the text encoder.
        prior: the model that predicts the map from a noisy map and the text.
        prior_scheduler: the scheduler of the map.
        unet: the model that predicts v of the latents from the map, the text and the style.
        scheduler: the scheduler of the latents, which `clipguide.steer` wraps.
        memory: the maps of drawings, by name. Without it, the prior samples all maps.
        details: the network that shows the U-Net the details that the memory has. Without it, the
            U-Net draws them all anew.
    """

    default_best_of, default_batch, default_steps = CANDIDATES, BATCH, STEPS
    prompt_first = True  # the order of the halves of a batch with classifier-free guidance
    model_cpu_offload_seq = "text_encoder->prior->memory->details->unet->vae"
    _optional_components = ["memory", "details"]
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
        memory: MapMemory | None = None,
        details: Details | None = None,
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
            memory=memory,
            details=details,
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

    @property
    def _map_channels(self) -> int:
        """Return K. The U-Net gets the maps below the latents."""
        return self.unet.config.in_channels - self.unet.config.out_channels

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
        eta: float = 0.0,
        recall: bool = False,
        like: Tensor | None = None,
        like_noise: float = LIKE_NOISE,
        generator: Generators = None,
    ) -> Tensor:
        """Return maps_BKhw of prompts, or maps_B(K + D)hw with details (`MapMemory.recall`).

        With `like`, maps_BKhw or one for all, the prior changes these maps, from the noise level
        `like_noise` on. The map of an empty prompt stays as it is. Otherwise, with `recall`, the
        map of an object that the memory knows is one of its maps, by chance, in the style and the
        colour that the prompt names. The prior samples the others (`prior.sampled`). They have no
        details: zeros.
        """
        config, device, dtype = self.prior.config, self._execution_device, self.prior.dtype
        side, channels = config.sample_size, config.in_channels
        more = 0 if self.memory is None else 4 * self.memory.config.detail_channels
        maps = torch.zeros(len(prompts), channels + more, side, side, device=device, dtype=dtype)
        named = self._named(prompts) if recall and like is None else [None] * len(prompts)
        if known := [b for b, found in enumerate(named) if found is not None]:
            rows = [self.memory.rows(named[b], style_in(prompts[b])) for b in known]
            by_chance = chosen(list(map(len, rows)), _of(generator, known))
            colours = [named[b].colour for b in known]
            recalled = self.memory.recall([r[k] for r, k in zip(rows, by_chance)], colours)
            maps[known] = recalled.to(device, dtype)
        new = [b for b, found in enumerate(named) if found is None]
        start = None
        if like is not None:
            maps[:, :channels] = like.to(device, dtype)
            new = [b for b in new if prompts[b]] if like_noise else []
            start = maps[new, :channels]
        if not new:
            return maps
        texts = [prompts[b] for b in new]
        if guidance_scale > 1:
            texts += [negatives[b] for b in new]
        own = _of(generator, new)

        def noise() -> Tensor:
            shape = (len(new), channels, side, side)
            return randn_tensor(shape, generator=own, device=device, dtype=dtype)

        maps[new, :channels] = sampled(
            self.prior,
            self.prior_scheduler,
            noise,
            self.encode_prompt(texts),
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            start=start,
            level=1.0 if start is None else like_noise,
        ).to(dtype)
        return maps

    def _named(self, prompts: Sequence[str]) -> list[Named | None]:
        """Return what each prompt names of what the memory has."""
        if self.memory is None:
            return [None] * len(prompts)
        return [self.memory.names.find(prompt) for prompt in prompts]

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
        mean, deviation = self._moments(latents)
        latents = latents * deviation / self.vae.config.scaling_factor + mean
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Return the latents_BChw that decode to images, which are in [-1, 1]."""
        latents = self.vae.encode(image_B3HW.to(self.vae.dtype)).latent_dist.mode()
        mean, deviation = self._moments(latents)
        return (latents - mean) * self.vae.config.scaling_factor / deviation

    def _moments(self, latents: Tensor) -> list[Tensor]:
        """Return the mean and the deviation of the channels of the VAE's latents."""
        config = self.vae.config
        return [
            torch.tensor(x).to(latents).view(1, -1, 1, 1)
            for x in (config.latents_mean, config.latents_std)
        ]

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
        like: Tensor | None = None,
        like_noise: float = LIKE_NOISE,
        style: str | None = None,
        prior_num_inference_steps: int = 8,
        prior_eta: float = 1.0,
        recall: bool = True,
        scenes: bool = True,
        map_guidance_scale: float = 2.0,
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
            maps: maps_BKhw, in place of those of the memory or the prior; with details if they
                have more channels, as those of `draw_maps`.
            like: maps_BKhw of images to vary, or one for all (`clipguide.mini.reader`). The prior
                begins with them, and the memory is not used. The map of an empty prompt stays as
                it is.
            like_noise: the noise level at which the prior begins with `like`, from 0 to 1. At 0,
                each map stays as it is; at 1, nothing of it is left.
            style: one of STYLES. By default, it is the style that the prompt names, or a random one
                for each image, of those that the memory has of the object or of USUAL. "any"
                leaves the style to the models.
            prior_num_inference_steps: the number of steps of the prior.
            prior_eta: the share of new noise in each step of the prior, from 0 to 1.
            recall: whether the map of an object that the memory knows comes from there instead of
                from the prior.
            scenes: whether the objects of a prompt that names two to four, or up to four of one, or
                one on a coloured ground, are drawn one by one and then put together, if the memory
                knows them all.
            map_guidance_scale: the guidance scale of the U-Net, for the map and the text; 1 is no
                guidance.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether to return an ImagePipelineOutput instead of a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)`.
            callback_on_step_end_tensor_inputs: the names of its tensors: "latents", "maps".

        Returns:
            The images.

        Raises:
            UsageError: a size, a style or the number of generators is not possible, or both `maps`
                and `like` are given.
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
        if maps is not None and like is not None:
            raise UsageError("maps stay as they are, and like is varied: give one of them.")
        if like is not None and len(like) not in (1, len(prompts)):
            raise UsageError(f"There are {len(like)} maps in like for {len(prompts)} images.")
        for name, share in (("eta", eta), ("prior_eta", prior_eta), ("like_noise", like_noise)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} must be between 0 and 1, not {share}.")
        self._guidance_scale, self._interrupt = guidance_scale, False
        given = maps if like is None else like
        labels = labels_of(prompts, style, self._styles(prompts, given, recall), generator)
        said = [with_style(p, STYLES[k]) for p, k in zip(prompts, labels)]
        if maps is None:
            maps = self.draw_maps(
                said,
                negatives,
                steps=prior_num_inference_steps,
                guidance_scale=guidance_scale,
                eta=prior_eta,
                recall=recall,
                like=like,
                like_noise=like_noise,
                generator=generator,
            )
        device = self._execution_device
        maps, code = split(maps.to(device, self.unet.dtype), self._map_channels)
        label_B = torch.tensor(labels, device=device)
        copies = 2 if map_guidance_scale > 1 else 1
        text = self.encode_prompt([*said, *negatives] if copies == 2 else said)
        latents = self.prepare_latents(len(prompts), height, width, generator, latents)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        extra = self.prepare_extra_step_kwargs(generator, eta)
        drawn, self._origin_B = {}, None
        if recall and scenes and given is None:
            drawn = self._scenes(prompts, labels, latents, map_guidance_scale, generator)
        with self.progress_bar(total=len(timesteps)) as bar:
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    continue
                x = self.scheduler.scale_model_input(torch.cat([latents] * copies), t)
                moved = self.map_input(maps)
                output = self._denoise(x, t, moved, code, text, label_B, map_guidance_scale)
                for b, (x0, _) in drawn.items():
                    output[b] = self._towards(x0, x[b], t)
                latents = self.scheduler.step(output, t, latents, **extra, return_dict=False)[0]
                if self._origin_B is not None:
                    of = self._origin_B.to(device)
                    both = torch.cat([of + k * len(of) for k in range(copies)])
                    maps, code, label_B = maps[of], code[of], label_B[of]
                    text = text[0][both], text[1][both]
                    drawn = {b: drawn[k] for b, k in enumerate(of.tolist()) if k in drawn}
                    self._origin_B = None
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "maps": maps}
                    wanted = {k: tensors[k] for k in callback_on_step_end_tensor_inputs}
                    given = callback_on_step_end(self, i, t, wanted)
                    latents, maps = given.pop("latents", latents), given.pop("maps", maps)
                bar.update()
        image = latents
        if output_type != "latent":
            image = self.decode(latents)
            for b, (x0, page) in drawn.items():  # what the VAE loses of small objects comes back
                image[b] += page - self.decode(x0[None])[0]
            image = self.image_processor.postprocess(image, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    def take(self, origin_B: Tensor) -> None:
        """Give sample b the map, the text and the style of sample origin_B[b] from the next step
        on, as the caller does with its latents in the scheduler's step."""
        self._origin_B = origin_B

    def _styles(
        self, prompts: Sequence[str], maps: Tensor | None, recall: bool
    ) -> list[Sequence[str]]:
        """Return the styles that the image of each prompt may have, if the prompt names none."""
        if maps is not None:
            return [("any",)] * len(prompts)  # a given map already has a style
        named = self._named(prompts) if recall else [None] * len(prompts)
        return [USUAL if found is None else self.memory.styles(found) for found in named]

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
        x: Tensor,
        t: Tensor,
        maps: Tensor,
        code: Tensor,
        text: tuple[Tensor, Tensor],
        label_B: Tensor,
        scale: float,
        *,
        alone: bool = False,
    ) -> Tensor:
        """Return the output of the U-Net for its input x, with classifier-free guidance.

        If the scale is above 1, x and the text, which is (hidden states, mask), are those of the
        prompts, followed by those of the negative prompts. `alone`: without the hooks that others
        have put on the networks, and also while a tape is replayed.
        """
        guided = scale > 1
        if guided:
            maps, code = (torch.cat([a, torch.zeros_like(a)]) for a in (maps, code))
            label_B = torch.cat([label_B, torch.zeros_like(label_B)])
        under, more = F.interpolate(maps, x.shape[-2:], mode="nearest"), {}
        if self.details is not None and code.any():
            more = self.details(code, maps, t, x.shape[-2:])
        unet = self.unet
        if alone:
            unet = getattr(unet.forward, "itself", unet.forward)
        output = unet(
            torch.cat([x, under], 1),
            t,
            **conditions(maps, *text, label_B, len(STYLES)),
            **more,
            return_dict=False,
        )[0]
        if guided:
            told, untold = output.chunk(2)
            output = untold + scale * (told - untold)
        return output

    def _scenes(
        self,
        prompts: Sequence[str],
        labels: Sequence[int],
        latents: Tensor,
        scale: float,
        generator: Generators,
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the x0_Chw and the page_3HW, in [-1, 1], of each image whose prompt is a scene, by
        the number of the image."""
        if self.memory is None or not hasattr(self.scheduler, "alphas_cumprod"):
            return {}
        found = {b: self.memory.names.scene(prompt) for b, prompt in enumerate(prompts)}
        return {
            b: self._draw_scene(scene, labels[b], latents, scale, _of(generator, [b]))
            for b, scene in found.items()
            if scene is not None
        }

    def _draw_scene(
        self, scene: Scene, label: int, like: Tensor, scale: float, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """Draw each object by itself, and put the images together. Return the latents_Chw of the
        page, and the page_3HW, in [-1, 1]."""
        style, number, device = STYLES[label], len(scene.objects), like.device
        own = generator[0] if isinstance(generator, Sequence) else generator
        rows_B = []
        for named in scene.objects[: 1 if scene.same else number]:
            rows = self.memory.rows(named, style)
            rows_B.append(rows[chosen([len(rows)], own)[0]])
        rows_B = rows_B * number if scene.same else rows_B
        maps = self.memory.recall(rows_B, [named.colour for named in scene.objects]).to(like)
        maps, code = split(maps, self._map_channels)
        said = [with_style(prompt, style) for prompt in scene.prompts]
        copies = 2 if scale > 1 else 1
        text = self.encode_prompt(said + [""] * number if copies == 2 else said)
        label_B = torch.full((number,), label, device=device)
        shape = (number, *like.shape[1:])
        latents = randn_tensor(shape, generator=own, device=device, dtype=like.dtype)
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(self.default_steps, device=device)
        for t in scheduler.timesteps:
            x = torch.cat([latents] * copies)
            # Alone, so that hooks of the run see none of these calls.
            output = self._denoise(x, t, maps, code, text, label_B, scale, alone=True)
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
        page = together(self.decode(latents).clamp(-1, 1), scene.ground, above=scene.above)
        return self.encode(page)[0].to(like), page[0]

    def _towards(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the v for which the x0 of the input x at a timestep is the given one: with noise ε
        = (x − α·x0) / σ, v = α·ε − σ·x0 (Salimans & Ho 2022, appendix D), where α² + σ² = 1."""
        alpha_squared = self.scheduler.alphas_cumprod[round(float(t))].to(x)
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).clamp(min=1e-8).sqrt()
        return (alpha * x - x0) / sigma

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


def _of(generator: Generators, images: Sequence[int]) -> Generators:
    """Return the generators of some of the images. One generator of all images is theirs too."""
    return [generator[b] for b in images] if isinstance(generator, Sequence) else generator
