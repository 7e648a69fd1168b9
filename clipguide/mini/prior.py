"""The sampler of the embedded generator's prior, which is a flow model.

The prior predicts x0. With noise = (x - (1 - sigma)·x0) / sigma, the next x is (1 - sigma')·x0 +
sigma'·(sqrt(1 - eta²)·noise + eta·new noise). With eta 0, this is an Euler step. With eta 1, each
step uses new noise only, which corrects errors of earlier steps (DDIM, Song et al. 2021, equation
12, on the path of a flow).

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
    start: Tensor | None = None,
    level: float = 1.0,
) -> Tensor:
    """Return maps_BKhw.

    With `start`, the sampler begins with these maps at the noise level `level` instead of with
    noise (SDEdit, Meng et al. 2022, algorithm 1, on the path of a flow).

    Args:
        prior: the model that predicts x0 from a noisy map and the text.
        scheduler: the scheduler with the noise levels.
        noise: a function that draws noise_BKhw.
        text: (hidden states_BLD, mask_BL) of the prompts, followed by those of the negative prompts
            if `guidance_scale` is above 1.
        steps: the number of steps.
        guidance_scale: the scale of classifier-free guidance; 1 is none.
        eta: the share of new noise in each step, from 0 to 1.
        start: maps_BKhw, or None.
        level: the first noise level, above 0; 1 is pure noise.
    """
    (hidden, mask), guided, x = text, guidance_scale > 1, noise()
    if start is not None:
        x = (1 - level) * start + level * x
    sigmas = np.linspace(level, level / steps, steps)
    scheduler.set_timesteps(sigmas=sigmas, device=x.device)
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
