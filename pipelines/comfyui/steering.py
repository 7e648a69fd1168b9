"""Nodes that steer every sampler by a CLIP or by a reward. They take and return a MODEL.

A node stands between the model and the sampler. The returned MODEL changes each estimate of x0
after classifier-free guidance, as `clipguide.steer` does.

Shapes: B images, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn

from clipguide.errors import ClipguideWarning, UsageError
from clipguide.guidance import Shortcut
from clipguide.guidance.clean import clean
from clipguide.guidance.descent import descend
from clipguide.guidance.ladder import Decoding, Plan
from clipguide.guidance.levels import Level
from clipguide.guidance.run import Run
from clipguide.objectives import Objective
from clipguide.rewards import REWARDS, Reward

from .models import CLIP, REWARD, by_clip, by_reward

FRACTION = {"min": 0.0, "max": 1.0, "step": 0.01}
LOW, HIGH = Shortcut.window
STRENGTH = {"default": Shortcut.strength, "min": 0.0, "max": 10.0, "step": 0.01}
STEERED = {
    "prompt": ("STRING", {"multiline": True, "tooltip": "a fox | a night sky:0.5"}),
    "strength": ("FLOAT", {**STRENGTH, "tooltip": "a fraction of the size of x0; 0 is off"}),
    "window_low": ("FLOAT", {"default": LOW, **FRACTION, "tooltip": "0 is clean"}),
    "window_high": ("FLOAT", {"default": HIGH, **FRACTION, "tooltip": "1 is noise"}),
}
VAE = ("VAE", {"tooltip": "decodes what the CLIP or the reward looks at"})


class SteerByClip:
    """The node that steers the samples of a MODEL towards a prompt."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Whatever samples from this model is steered towards the prompt."
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        return {"required": {"model": ("MODEL",), "vae": VAE, **STEERED, "clip": CLIP}}

    def patch(
        self,
        model,
        vae,
        prompt: str,
        strength: float,
        window_low: float,
        window_high: float,
        clip: str,
    ) -> tuple:
        """Return a steered clone of the model. The model itself does not change.

        Raises:
            UsageError: a value is out of range, the prompt cannot be parsed, or the VAE is one of
                videos.
        """
        config = _config(vae, strength, window_low, window_high)
        objective = by_clip(clip, prompt, str(model.load_device))
        return (_patched(model, vae, config, objective),)


class SteerByReward:
    """The node that steers the samples of a MODEL towards a higher reward."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Whatever samples from this model is steered towards a higher reward."
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        return {"required": {"model": ("MODEL",), "vae": VAE, "reward": (REWARD,), **STEERED}}

    def patch(
        self,
        model,
        vae,
        reward: Reward,
        prompt: str,
        strength: float,
        window_low: float,
        window_high: float,
    ) -> tuple:
        """Return a steered clone of the model. The model itself does not change.

        Raises:
            UsageError: the reward has no gradient; or as `SteerByClip.patch`.
        """
        if not reward.differentiable:
            known = ", ".join(sorted(name for name, kind in REWARDS.items() if kind.gradient))
            raise UsageError(
                f"The reward {reward.asked} has no gradient to steer by: rank images by it, or "
                f"load one of {known}."
            )
        config = _config(vae, strength, window_low, window_high)
        return (_patched(model, vae, config, by_reward(reward, prompt)),)


def _config(vae, strength: float, low: float, high: float) -> Shortcut:
    """Return the settings. Raise UsageError for a value out of range, or a VAE of videos."""
    config = Shortcut(strength=strength, window=(low, high))
    if getattr(vae, "latent_dim", 2) != 2:
        raise UsageError("This VAE is not one of images: steer an image model with its own VAE.")
    return config


def _patched(model, vae, config: Shortcut, objective: Objective):
    """Return a clone of the model with the hook."""
    # ComfyUI's tensors are inference tensors, which have no gradients
    with torch.inference_mode(False):
        decode = _decoding(vae.first_stage_model, str(model.load_device))
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(_hook(config, objective, decode))
    return patched


def _decoding(vae: nn.Module, device: str) -> Decoding:
    """Return a function from latents, as the VAE takes them, to image_B3HW. It uses a clean copy of
    the decoding half, one image at a time, and recomputes its layers. The VAE does not change."""
    return Decoding(clean(vae, device), _decoded, Plan(single=True, layers=True))


def _decoded(vae: nn.Module, latents_BChw: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents_BChw) / 2 + 0.5


def _hook(
    config: Shortcut, objective: Objective, decode: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict], torch.Tensor]:
    """Return the function that ComfyUI calls after classifier-free guidance: x0 in, x0 out.

    The noise level seeds the views of an evaluation. The hook has no state, so an image does not
    depend on what was sampled before.
    """

    def hook(args: dict) -> torch.Tensor:
        x0_BChw, base = args["denoised"], args["model"]
        noise = _noise(base.model_sampling, args["sigma"])
        if config.idle or not config.covers(noise):
            return x0_BChw
        seed = round(noise * 2**40)
        run = Run(
            scheduler=None,
            decode=lambda x0_BChw: decode(base.process_latent_out(x0_BChw)),
            objective=objective,
            generators=[torch.Generator().manual_seed(seed) for _ in x0_BChw],
            streams=(),
            warn=_warn,
        )
        ways = [(1.0, run.gradient)]
        descent = descend(x0_BChw.float(), ways, size=config.size(noise))
        for i in (~descent.finite_B).nonzero().flatten().tolist():
            run.warn(f"The gradient of image {i} is not a number: it is not steered here.")
        return x0_BChw + descent.delta.to(x0_BChw.dtype)

    return hook


def _noise(sampling, sigma_B: torch.Tensor) -> float:
    """Return the noise level in [0, 1], from the factors of image and noise of the model."""
    sigma_1 = sigma_B.flatten()[:1].float()
    zero_1, one_1 = torch.zeros_like(sigma_1), torch.ones_like(sigma_1)
    alpha = float(sampling.noise_scaling(sigma_1, zero_1.clone(), one_1))
    sigma = float(sampling.noise_scaling(sigma_1, one_1.clone(), zero_1))
    return Level("sample", alpha, sigma, data=getattr(sampling, "sigma_data", 1.0)).noise


def _warn(message: str) -> None:
    warnings.warn(message, ClipguideWarning, stacklevel=2)
