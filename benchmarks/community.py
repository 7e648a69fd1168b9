"""The baseline: a reimplementation of diffusers' pipeline clip_guided_stable_diffusion.

Each step computes the model_output with classifier-free guidance. Then the U-Net runs again on the
conditioned half, with gradients. The step computes x0 from its output, decodes it and crops it. It
adds the gradient of the spherical distance with respect to x_t to ε (Dhariwal & Nichol 2021,
algorithm 2):

    ε <- ε − √(1 − ᾱ) · ∇ over x_t of −scale · distance

A step takes about three passes of the U-Net. A step of plain sampling takes two. The cutouts come
from torch's global generator. The loss is the sum over the batch. The original supports ε only.
This code converts v to ε and back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clipguide.clip import Clip
from clipguide.guidance.noise_levels import level


def cutouts(image_B3HW: torch.Tensor, size: int, number: int) -> torch.Tensor:
    """Return `number` random squares of each image, with average pooling to `size` pixels.

    Each square has a random side and a random place.

    Returns:
        float (number·B, 3, size, size).
    """
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
    """Return the spherical distance 2·asin²(‖u − t‖/2) of the normalised u and t."""
    return (F.normalize(u, dim=-1) - F.normalize(t, dim=-1)).norm(dim=-1).div(2).asin().pow(2) * 2


@torch.no_grad()
def sample(
    pipe,
    clip: Clip,
    prompts: list[str],
    *,
    scale: float,
    number: int,
    told_first: bool = False,
    **settings: object,
) -> torch.Tensor:
    """Sample with the guided pipeline.

    Args:
        pipe: the pipeline.
        clip: the CLIP that guides.
        prompts: B prompts.
        scale: the clip_guidance_scale of the original.
        number: the number of cutouts of an image.
        told_first: whether the batch of the U-Net has the conditioned half first.
        **settings: more arguments for the pipeline.

    Returns:
        The final latents_BChw.
    """
    scheduler, text_BD = pipe.scheduler, clip.encode_text(prompts)
    step, asked = scheduler.step, {}

    def seen(unet, args: tuple, kwargs: dict) -> None:
        asked["args"], asked["kwargs"] = args, kwargs

    def guided(output: torch.Tensor, t: torch.Tensor, x: torch.Tensor, **more: object):
        here = level(scheduler, t)
        if here.alpha > 1e-3:
            half = slice(None, len(x)) if told_first else slice(-len(x), None)
            (inputs, *rest), kwargs = _of(asked["args"], half), _of(asked["kwargs"], half)

            def again(x: torch.Tensor) -> torch.Tensor:
                scaled = scheduler.scale_model_input(x, t)
                whole = torch.cat([scaled, inputs[:, x.shape[1] :]], 1)
                return pipe.unet(whole, *rest, **{**kwargs, "return_dict": False})[0]

            gradient = _gradient(pipe, again, clip, here, x, text_BD, scale, number)
            move = -here.sigma * gradient  # the change of ε
            if here.prediction == "v":
                move = here.alpha * move + here.sigma * (here.sigma / here.alpha) * move
            output = output + move
        return step(output, t, x, **more)

    hook = pipe.unet.register_forward_pre_hook(seen, with_kwargs=True)
    scheduler.step = guided
    try:
        return pipe(prompts, output_type="latent", **settings).images
    finally:
        hook.remove()
        del scheduler.step


def _of(value: object, half: slice) -> object:
    """Return a value with the tensors in it cut to a half of the batch."""
    if isinstance(value, torch.Tensor):
        return value[half] if value.ndim else value
    if isinstance(value, dict):
        return {key: _of(part, half) for key, part in value.items()}
    return [_of(part, half) for part in value] if isinstance(value, (list, tuple)) else value


def _gradient(pipe, again, clip, here, x, text_BD, scale, number) -> torch.Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = here.x0(again(x), x)
        mixed = here.sigma * x0 + (1 - here.sigma) * x  # the weights of the original
        if hasattr(pipe, "decode"):
            image = pipe.decode(mixed)
        else:
            image = pipe.vae.decode(mixed / pipe.vae.config.scaling_factor).sample
        image = (image / 2 + 0.5).clamp(0, 1)
        views = cutouts(image, clip.image_size, number)
        distance = spherical(clip.encode_image(views), text_BD.repeat(number, 1))
        loss = scale * distance.view(number, len(x)).mean(0).sum()
        return -torch.autograd.grad(loss, x)[0]
