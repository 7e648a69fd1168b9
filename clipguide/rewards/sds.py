"""Score distillation: how far an image is from what a generator would draw in its place.

Shapes: B images, 3 channels, H x W pixels, C channels of h x w latents.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..canvases.base import normal
from ..errors import UsageError
from ..hub import without_bars
from ..objectives import Objective, fresh_generators
from ..objectives.base import times_each
from .pictures import plain
from .registry import Scorer, Settings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FIRST, LAST = 0.98, 0.1  # noise levels at the start and at the end of a run, as shares of all steps
ALONE = 0.5  # the noise level where there is no run, as in `rerank`
DRAFTS, STEPS = 8, 4  # drafts of which one is selected, and steps of each
STRIDE = 2654435761  # between the seeds of drafts: 2³² divided by the golden ratio
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}

Guided = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (noisy_BChw, timestep) -> output


class Distilled(Objective):
    """The mean squared difference between an image and the one that a generator sees in it.

    The image is encoded to z, noised to αz + σε and denoised in one step to ẑ, with classifier-free
    guidance. The decoded ẑ is the target of the pixels, and has no gradient. Score distillation
    moves z along ε̂ − ε = (z − ẑ)·α/σ (Poole et al. 2023, DreamFusion, eq. 3). Here the pixels move
    along image − decoded ẑ, and the noise falls along a run: both are as in HiFA (Zhu et al. 2024).
    Without a run, the loss is like that of a diffusion classifier (Li et al. 2023), but at one
    noise level, in pixels and with guidance.

    The generator's own choices, such as a map, depend on the initial seed of an image's generator.
    They stay the same for a whole run.

    Args:
        pipe: a pipeline with a U-Net and a VAE of images.
        prompts: one for all images, or one for each run of as many images.

    Raises:
        UsageError: the pipeline has another kind of model, or needs more than a text.
    """

    def __init__(self, pipe: DiffusionPipeline, prompts: Sequence[str]) -> None:
        check(pipe)
        if pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast"):
            pipe.vae.float()  # SDXL's overflows in float16
        self.pipe, self.prompts, self.level = pipe, tuple(prompts), ALONE
        parts = {k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)}
        self.models = nn.ModuleDict(parts).eval().requires_grad_(False)  # for the fingerprint
        self._guided: dict[tuple, Guided] = {}
        self._chosen: dict[int, int] = {}  # the seed that is used in place of another

    def at(self, progress):
        now = copy.copy(self)
        now.level = FIRST + (LAST - FIRST) * progress
        return now

    def __call__(self, image_B3HW, generators=None):
        generators = list(generators or fresh_generators(len(image_B3HW)))
        size = fitting(self.pipe, *image_B3HW.shape[-2:])
        if size != tuple(image_B3HW.shape[-2:]):
            image_B3HW = F.interpolate(image_B3HW, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            target_B3HW = self._target(image_B3HW, generators)
        return (image_B3HW - target_B3HW).square().flatten(1).mean(1)

    def choose(
        self, seed: int, score: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int]
    ) -> None:
        """Select what the generator chose for a seed among DRAFTS drafts, by the score_B of their
        image_B3HW. A generator that chooses nothing but its noise, which is new at each step, is
        left as it is.

        Args:
            seed: the initial seed of the generator of an image.
            score: the function of drafts; higher is better.
            size: height and width of the images in pixels.
        """
        if not hasattr(self.pipe, "draw_maps"):
            return
        height, width = fitting(self.pipe, *size)
        seeds = [(seed + k * STRIDE) % 2**32 for k in range(DRAFTS)]  # the CPU's have 32 bits
        drafts_B3HW = self.pipe(
            prompt=list(self.prompts) * DRAFTS,
            height=height,
            width=width,
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(one) for one in seeds],
            output_type="pt",
        ).images
        self._chosen[seed] = seeds[score(drafts_B3HW).argmax().item()]

    def _target(
        self, image_B3HW: torch.Tensor, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Return the target_B3HW in [0, 1]."""
        from ..guidance.latents import family  # imports diffusers
        from ..guidance.levels import Level

        pipe, kind = self.pipe, family(self.pipe)
        alphas = pipe.scheduler.alphas_cumprod
        step = round(self.level * (len(alphas) - 1))
        alpha, sigma = alphas[step].sqrt().item(), (1 - alphas[step]).sqrt().item()
        given_B3HW = image_B3HW.clamp(0, 1).to(pipe.vae.dtype) * 2 - 1
        latents_BChw = pipe.vae.encode(given_B3HW).latent_dist.mode().float()
        zero, one = (
            kind.to_vae(torch.full_like(latents_BChw, value), pipe.vae, pipe) for value in (0, 1)
        )
        latents_BChw = (latents_BChw - zero) / (one - zero)  # the inverse of the affine `to_vae`
        noise_BChw = normal(latents_BChw.shape[1:], generators).to(latents_BChw)
        noisy_BChw = alpha * latents_BChw + sigma * noise_BChw
        guided = self._with_guidance([g.initial_seed() for g in generators], image_B3HW.shape[-2:])
        output_BChw = guided(noisy_BChw, torch.tensor(step, device=noisy_BChw.device))
        level = Level(prediction(pipe), alpha, sigma)
        x0_BChw = kind.to_vae(level.x0(output_BChw, noisy_BChw), pipe.vae, pipe)
        return kind.decode(pipe.vae, x0_BChw.to(pipe.vae.dtype)).clamp(0, 1).to(image_B3HW)

    def _with_guidance(self, seeds: Sequence[int], size: tuple[int, int]) -> Guided:
        """Return the U-Net with the conditions that the pipeline gives it for these seeds."""
        key = (*seeds, *size)
        if key not in self._guided:
            times = times_each(len(seeds), len(self.prompts), "prompts")
            prompts = [prompt for prompt in self.prompts for _ in range(times)]
            used = (self._chosen.get(seed, seed) for seed in seeds)
            generators = [torch.Generator().manual_seed(seed) for seed in used]
            self._guided[key] = recorded(self.pipe, prompts, generators, size)
        return self._guided[key]


def recorded(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    size: tuple[int, int],
) -> Guided:
    """Run a pipeline up to its first step, and return a function that calls its U-Net as the
    pipeline did, at its default guidance scale, but with other latents at another timestep.

    If another network adds to the skip connections of the U-Net, as a ControlNet does, what it adds
    depends on the timestep. Then the pipeline runs to its end, and the function takes what was
    added at the nearest of its timesteps.

    Args:
        pipe: the pipeline.
        prompts: B prompts.
        generators: B generators, from which the pipeline draws.
        size: height and width of an image in pixels.

    Returns:
        A function from noisy_BChw and a timestep to output_BChw, before it is converted to x0.

    Raises:
        UsageError: the pipeline calls its U-Net with more than two copies of the latents.
    """

    calls: list[tuple[float, torch.Tensor, dict]] = []  # timestep, sample, named arguments

    def hear(unet: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append((float(args[1]), args[0], kwargs))
        if kwargs.get("down_block_additional_residuals") is None:
            raise _Heard

    parameters = inspect.signature(pipe.__call__).parameters
    handle = pipe.unet.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        pipe(
            prompt=list(prompts),
            height=size[0],
            width=size[1],
            num_inference_steps=10,  # PNDM takes no fewer than 4
            generator=list(generators),
            output_type="latent",
            **({"scenes": False} if "scenes" in parameters else {}),
        )
    except _Heard:
        pass
    finally:
        handle.remove()
    _, given, _ = calls[0]
    scale = parameters.get("map_guidance_scale", parameters["guidance_scale"]).default
    more = given[:, pipe.vae.config.latent_channels :]  # such as maps
    copies = len(given) // len(prompts)
    if copies not in (1, 2):
        raise UsageError(
            f"The reward sds takes no {type(pipe).__name__}, whose U-Net gets {copies} copies of "
            "the latents: take Stable Diffusion 1, 2 or XL, or mini."
        )
    prompt_first = getattr(pipe, "prompt_first", False)  # diffusers' pipelines put it second

    def guided(noisy_BChw: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sample = torch.cat([noisy_BChw] * copies).to(given)
        _, _, kwargs = min(calls, key=lambda call: abs(call[0] - float(timestep)))
        output = pipe.unet(torch.cat([sample, more], 1), timestep, **kwargs)[0]
        if copies == 1:
            return output
        untold, told = output.chunk(2)[:: -1 if prompt_first else 1]
        return untold + scale * (told - untold)

    return guided


class _Heard(Exception):
    """The first call of the U-Net says all."""


def fitting(pipe: DiffusionPipeline, height: int, width: int) -> tuple[int, int]:
    """Return height and width of an image with these proportions, and about as many pixels as the
    pipeline was trained on."""
    config, factor = pipe.unet.config, pipe.vae_scale_factor
    own = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
    side, halvings = own * factor, len(config.block_out_channels) - 1
    grain = math.lcm(factor * 2**halvings, 8)  # pipelines of Stable Diffusion ask for 8
    larger = side / (height * width) ** 0.5
    return tuple(max(1, round(edge * larger / grain)) * grain for edge in (height, width))


def check(pipe: DiffusionPipeline) -> None:
    """Raise UsageError for a pipeline that does not denoise latents of images with a U-Net."""
    from ..guidance.latents import family

    kind = family(pipe)
    noises = hasattr(pipe.scheduler, "alphas_cumprod") and prediction(pipe) is not None
    plain = kind.decoder == "vae" and kind.unpack is None and not kind.video
    given = inspect.signature(pipe.__call__).parameters
    alone = not {"image", "pag_scale"} & given.keys() and "prompt" in given
    if not (plain and noises and alone and getattr(pipe, "unet", None) is not None):
        raise UsageError(
            "The reward sds takes a generator that draws from text alone with a U-Net, as Stable "
            f"Diffusion 1, 2 and XL and mini do, not a {type(pipe).__name__}."
        )


def prediction(pipe: DiffusionPipeline) -> str | None:
    """Return what the U-Net predicts, as `Level` names it, or None for what `Level` does not have.
    """
    return PREDICTIONS.get(pipe.scheduler.config.get("prediction_type", "epsilon"))


def sds(settings: Settings) -> Scorer:
    """Load `sds[=MODEL]`: "mini", a diffusers folder or a model id."""
    from ..pipelines.loading import load_pipeline

    with without_bars():
        pipe = load_pipeline(settings.where, device=settings.device, dtype=settings.dtype)
    return lambda prompts: Distilled(pipe, plain(prompts, "sds"))
