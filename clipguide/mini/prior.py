"""How the prior of the embedded generator is sampled: a flow, by Euler or with new noise.

The prior predicts x0; noise = (x - (1 - sigma)·x0) / sigma; the next x is (1 - sigma')·x0 +
sigma'·(sqrt(1 - eta²)·noise + eta·new noise). With eta 0 that is an Euler step; 1 draws all noise
anew, which mends the errors of earlier steps (DDIM, Song et al. 2021, equation 12, on a flow's
path).

Shapes: B maps, L tokens, D channels of text, K channels of a map.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from torch import Tensor


def sampled(
    prior: PixArtTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    noise: Callable[[], Tensor],
    text: tuple[Tensor, Tensor],
    *,
    steps: int,
    guidance_scale: float,
    eta: float,
) -> Tensor:
    """Return maps_BKhw.

    Args:
        prior: predicts x0 from a noisy map and the text.
        scheduler: has the noise levels.
        noise: draws noise_BKhw.
        text: (hidden states_BLD, mask_BL), of the prompts and, where there is guidance, of the
            negative prompts after them.
        steps: the number of steps.
        guidance_scale: how closely the map follows the prompt; 1 is no guidance.
        eta: how much of the noise each step draws anew, 0 to 1.
    """
    (hidden, mask), guided, x = text, guidance_scale > 1, noise()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=x.device)
    sigmas = scheduler.sigmas
    for t, sigma, after in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:]):
        x0 = prior(
            torch.cat([x, x]) if guided else x,
            encoder_hidden_states=hidden,
            timestep=t.expand(len(hidden)),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        if guided:
            told, untold = x0.chunk(2)
            x0 = untold + guidance_scale * (told - untold)
        epsilon = (x - (1 - sigma) * x0) / sigma
        if eta > 0 and after > 0:
            epsilon = (1 - eta**2) ** 0.5 * epsilon + eta * noise()
        x = ((1 - after) * x0 + after * epsilon).to(x0.dtype)
    return x
