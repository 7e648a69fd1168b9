"""The baseline: the community pipeline clip_guided_stable_diffusion of diffusers, written out.

Each step computes the model_output with classifier-free guidance. Then the U-Net runs again on the
conditioned half, with gradients. x0 is computed from its output, decoded and cropped. The gradient
of the spherical distance with respect to x_t is added to ε (Dhariwal & Nichol 2021, algorithm 2):

    ε <- ε − √(1 − ᾱ) · ∇ over x_t of −scale · distance

A step takes about three passes, and two in plain sampling. The cutouts come from torch's global
generator. The loss is summed over the batch. The original supports ε only; here v is converted to ε
and back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clipguide.clip import Clip
from clipguide.guidance.noise_levels import level


def cutouts(image_B3HW: torch.Tensor, size: int, number: int) -> torch.Tensor:
    """Return squares of random side and place, averaged down to `size`: (N·B, 3, size, size)."""
    height, width = image_B3HW.shape[2:]
    most, least = min(height, width), min(height, width, size)
    found = []
    for _ in range(number):
        side = int(torch.rand([]) * (most - least) + least)
        left = torch.randint(0, width - side + 1, ())
        top = torch.randint(0, height - side + 1, ())
        cut = image_B3HW[:, :, top : top + side, left : left + side]
        found.append(F.adaptive_avg_pool2d(cut, size))
    return torch.cat(found)


def spherical(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return 2·asin²(‖u − t‖/2)."""
    return (F.normalize(u, dim=-1) - F.normalize(t, dim=-1)).norm(dim=-1).div(2).asin().pow(2) * 2


@torch.no_grad()
def sample(
    pipe,
    clip: Clip,
    prompts: list[str],
    *,
    steps: int,
    cfg: float,
    scale: float,
    number: int,
    generator: list[torch.Generator],
) -> torch.Tensor:
    """Return the final latents_BChw of a StableDiffusionPipeline. `scale` is its
    clip_guidance_scale."""
    scheduler, vae = pipe.scheduler, pipe.vae
    embeds, negative = pipe.encode_prompt(prompts, pipe.device, 1, True)
    scheduler.set_timesteps(steps)
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)
    x = torch.stack([torch.randn(shape, generator=g) for g in generator])
    x = x * scheduler.init_noise_sigma
    text_BD = clip.encode_text(prompts)
    for t in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([x, x]), t)
        without, given = pipe.unet(both, t, torch.cat([negative, embeds])).sample.chunk(2)
        output = without + cfg * (given - without)
        here = level(scheduler, t)
        if here.alpha > 1e-3:
            gradient = _gradient(pipe, vae, clip, here, x, t, embeds, text_BD, scale, number)
            move = -here.sigma * gradient  # of ε
            if here.prediction == "v":
                move = here.alpha * move + here.sigma * (here.sigma / here.alpha) * move
            output = output + move
        x = scheduler.step(output, t, x).prev_sample
    return x


def _gradient(pipe, vae, clip, here, x, t, embeds, text_BD, scale, number) -> torch.Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = pipe.unet(pipe.scheduler.scale_model_input(x, t), t, embeds).sample
        x0 = here.x0(output, x)
        mixed = here.sigma * x0 + (1 - here.sigma) * x  # as the original weighs them
        image = vae.decode(mixed / vae.config.scaling_factor).sample
        image = (image / 2 + 0.5).clamp(0, 1)
        views = cutouts(image, clip.image_size, number)
        distance = spherical(clip.encode_image(views), text_BD.repeat(number, 1))
        loss = scale * distance.view(number, len(x)).mean(0).sum()
        return -torch.autograd.grad(loss, x)[0]
