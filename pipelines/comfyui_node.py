"""A ComfyUI node that steers every sampler by a CLIP.

Install clipguide in ComfyUI's Python, and copy or link this file into ComfyUI/custom_nodes. The
node stands between the model and the sampler: the MODEL that it gives out moves each x0 estimate,
after classifier-free guidance, as `clipguide.steer` does.

Shapes: B images, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import nn

from clipguide.clip import Clip, load_clip
from clipguide.errors import ClipguideWarning, UsageError
from clipguide.guidance import Shortcut
from clipguide.guidance.clean import clean
from clipguide.guidance.contract import Run
from clipguide.guidance.descent import descend
from clipguide.guidance.guides import VIT_B_32
from clipguide.guidance.ladder import Decoding, Plan
from clipguide.guidance.levels import Level
from clipguide.objectives import Objective, Similarity

FRACTION = {"min": 0.0, "max": 1.0, "step": 0.01}
LOW, HIGH = Shortcut.window


class SteerByClip:
    """MODEL to MODEL: what samples from it is steered towards a prompt."""

    CATEGORY = "clipguide"
    DESCRIPTION = "Whatever samples from this model is steered towards the prompt."
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        return {
            "required": {
                "model": ("MODEL",),
                "vae": ("VAE", {"tooltip": "decodes what the CLIP looks at"}),
                "prompt": ("STRING", {"multiline": True, "tooltip": "a fox | a night sky:0.5"}),
                "strength": (
                    "FLOAT",
                    {"default": Shortcut.strength, "min": 0.0, "max": 10.0, "step": 0.01},
                ),
                "window_low": ("FLOAT", {"default": LOW, **FRACTION, "tooltip": "0 is clean"}),
                "window_high": ("FLOAT", {"default": HIGH, **FRACTION, "tooltip": "1 is noise"}),
                "clip": (
                    "STRING",
                    {"default": VIT_B_32.name, "tooltip": "of open_clip, a folder, or mini"},
                ),
            }
        }

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
        """A clone of the model with the hook; the model itself is as before.

        UsageError for a setting out of range, a prompt that does not parse, or a VAE of videos.
        """
        config = Shortcut(strength=strength, window=(window_low, window_high))
        if getattr(vae, "latent_dim", 2) != 2:
            raise UsageError("Only models of still pictures are steered: this VAE is another kind.")
        with torch.inference_mode(False):  # ComfyUI's own tensors take no part in gradients
            objective = Similarity(_clip(clip, str(model.load_device)), prompt)
            decode = _decoding(vae.first_stage_model, str(model.load_device))
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(_hook(config, objective, decode))
        return (patched,)


def _decoding(vae: nn.Module, device: str) -> Decoding:
    """Latents as the VAE takes them to image_B3HW, by a clean copy of its decoding half, an image
    at a time, its layers recomputed; the VAE itself is not touched."""
    return Decoding(clean(vae, device), _decoded, Plan(single=True, layers=True))


def _decoded(vae: nn.Module, latents_BChw: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents_BChw) / 2 + 0.5


def _hook(
    config: Shortcut, objective: Objective, decode: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict], torch.Tensor]:
    """What ComfyUI calls after classifier-free guidance: x0 in, x0 out.

    The views of an evaluation are drawn from its noise level: a hook that remembers nothing gives
    the same picture whatever was sampled before.
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
    """The noise level in [0, 1], from the shares that the model gives to picture and noise."""
    sigma_1 = sigma_B.flatten()[:1].float()
    zero_1, one_1 = torch.zeros_like(sigma_1), torch.ones_like(sigma_1)
    alpha = float(sampling.noise_scaling(sigma_1, zero_1.clone(), one_1))
    sigma = float(sampling.noise_scaling(sigma_1, one_1.clone(), zero_1))
    return Level("sample", alpha, sigma, data=getattr(sampling, "sigma_data", 1.0)).noise


@functools.lru_cache(maxsize=1)
def _clip(name: str, device: str) -> Clip:
    """Kept, so that another prompt costs no loading."""
    return load_clip(name, device=device)


def _warn(message: str) -> None:
    warnings.warn(message, ClipguideWarning, stacklevel=2)


NODE_CLASS_MAPPINGS = {"ClipguideSteer": SteerByClip}
NODE_DISPLAY_NAME_MAPPINGS = {"ClipguideSteer": "Steer by CLIP"}
