"""The direction of classifier-free guidance, from a hook on the denoiser.

A pipeline continues with uncond + g·(cond − uncond) (Ho & Salimans 2022), and a scheduler sees only
this sum. But most pipelines evaluate both in one batch of twice the samples. A forward hook keeps
this output until the step, which gives the direction, cond − uncond in x0. The direction is not
known if a pipeline evaluates them one after the other, has no classifier-free guidance or another
kind of guidance (three parts, perturbed attention), or if `compile()` compiled the module in place,
with its hooks.

Which half is of the prompt, and whether a pipeline negates its output after the denoiser, as
HiDream and Lumina do, is found from the sum. With halves a and b, and the sum o fitted as
α·a + τ·(b − a) by least squares, b is of the prompt if τ/α > 1/2: τ/α is g if a is uncond, else
1 − g, whatever a rescaling of the sum. The output is negated if α < 0.

Shapes: B samples, C channels, ... the rest of a latent's shape.
"""

from __future__ import annotations

import torch
from torch import nn

from .levels import Level
from .pipe_parts import denoiser
from .precision import widen


class GuidanceHook:
    """A context that keeps the last output of a pipeline's denoiser."""

    def __init__(self, pipe: object) -> None:
        self._pipe, self._output, self._hook = pipe, None, None
        self._both: tuple[torch.Tensor, torch.Tensor] | None = None  # uncond, cond

    def __enter__(self) -> GuidanceHook:
        model = denoiser(self._pipe)
        if isinstance(model, nn.Module) and model._compiled_call_impl is None:
            self._hook = model.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self.forget()

    def forget(self) -> None:
        """Forget the output that was kept, because it belongs to another run, or to another
        pipeline that shares the denoiser."""
        self._output = self._both = None

    def find(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        """Find the outputs with and without the prompt whose guided sum the scheduler got, and
        forget what was kept."""
        output, self._output, self._both = self._output, None, None
        pipe, channels = self._pipe, sample.shape[1]  # after these, those of a learned variance
        if output is None or len(output) != 2 * len(sample) or output.shape[2:] != sample.shape[2:]:
            return
        if model_output.shape != sample.shape:
            return
        if not getattr(pipe, "do_classifier_free_guidance", True):
            return
        if getattr(pipe, "do_perturbed_attention_guidance", False):
            return
        a, b = widen(output[:, :channels]).chunk(2)
        between, total = b - a, widen(model_output)
        aa, ab, bb = (a * a).sum(), (a * between).sum(), (between * between).sum()
        oa, ob = (total * a).sum(), (total * between).sum()
        alpha, tau = oa * bb - ob * ab, ob * aa - oa * ab  # × the determinant, above 0
        sign = torch.where(alpha < 0, -1.0, 1.0)
        second = sign * tau >= 0.5 * alpha.abs()  # as with two equal halves, which do not matter
        self._both = sign * torch.where(second, a, b), sign * torch.where(second, b, a)

    def direction(self, level: Level, sample: torch.Tensor) -> torch.Tensor | None:
        """Return cond − uncond as a move of x0, of sample's shape; None if this evaluation was not
        of both."""
        if self._both is None:
            return None
        uncond, cond = self._both
        nothing = torch.zeros_like(sample)  # x0 is linear in the output and the sample
        return level.x0(cond - uncond, nothing)

    def conditional(self) -> torch.Tensor | None:
        """Return the output with the prompt and without guidance, of this evaluation; None if that
        was not of both."""
        return None if self._both is None else self._both[1]

    def _keep(self, _: nn.Module, __: tuple, output: object) -> None:
        """Keep the widest output since the last step, because some pipelines evaluate a part of it
        again."""
        output = output[0]
        if isinstance(output, torch.Tensor):
            if self._output is None or len(output) >= len(self._output):
                self._output = output.detach()


def angle(move: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return the angle_B between two moves of x0 in degrees, 0 to 180; not a number where one is
    nothing.

    Kahan's formula, 2·atan2(‖u − v‖, ‖u + v‖) of unit vectors, is exact near 0 and 180 too.
    """
    u, v = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (move, direction))
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)))
