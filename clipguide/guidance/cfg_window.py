"""Apply classifier-free guidance only in a window of noise levels.

Source: Kynkäänniemi et al. 2024, "Applying guidance in a limited interval improves sample and
distribution quality in diffusion models".

Shapes: B samples, ... the rest of a latent's shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .guidance_direction import GuidanceHook


class CfgWindow:
    """Remove classifier-free guidance from the output of a denoiser at levels outside the window.

    Args:
        pipe: the pipeline.
        window: the lowest and the highest noise level at which guidance applies; None means all.
        direction: the hook that has the outputs of the denoiser with and without the prompt.
        warn: a function that shows a sentence to the user, once.
    """

    def __init__(
        self,
        pipe: object,
        window: tuple[float, float] | None,
        direction: GuidanceHook,
        warn: Callable[[str], None],
    ) -> None:
        self._pipe, self._window, self._direction, self._warn = pipe, window, direction, warn

    def __call__(self, model_output: torch.Tensor, noise: float) -> torch.Tensor:
        """Return the output at this noise level; outside of the window that of the prompt alone."""
        if self._window is None or self._window[0] <= noise <= self._window[1]:
            return model_output
        if not getattr(self._pipe, "do_classifier_free_guidance", True):
            return model_output
        alone = self._direction.conditional()
        if alone is None:
            self._warn(
                f"cfg_window is ignored: {type(self._pipe).__name__} does not evaluate both "
                "prompts at once."
            )
            return model_output
        return alone.to(model_output.dtype)
