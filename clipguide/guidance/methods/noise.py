"""Noise: optimise the initial noise of a model of one to four steps.

Source: Eyring et al. 2024 (ReNO). The gradient of the reward goes through the whole run. The
regulariser is the negative log-likelihood of the norm of the noise (their eq. 5):

    K(z) = −(d − 1)·log‖z‖ + ‖z‖²/2,    ∇K = (1 − (d − 1)/‖z‖²)·z.

As in ReNO, the step has Nesterov's momentum. Unlike there, it has no unit; each rms is over one
sample:

    z <- z − rate · (g / rms(g) + prior · ∇K).

The right norm does not keep noise white: a gradient is smooth, so the low frequencies grow. With
`white`, the default, a step uses only the part of g that keeps the norm of every block of the
spectrum. z is then projected to the norms of white noise (`guidance/whiteness.py`, after GPER, ICML
2026, arXiv 2602.08646):

    z <- P(z − rate · t / rms(t)),    t = the tangent part of g at z.

∇K is radial, so `prior` has no effect with `white`. The noise with the best objective so far is
kept, beginning with the initial noise. The last run draws the image from it.

A stochastic sampler draws the same noise in each run: that which the pipeline would draw after the
initial noise. If its generator began anew, the noise of the first step would have the numbers of
the initial noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import ClipguideError, UsageError
from ..contract import Method
from ..generators import one_seed, restarted
from ..pipe_parts import call_signature
from ..precision import along, unit, widen
from ..whiteness import Spectrum
from ..whole_runs import optimised


@dataclass(frozen=True, kw_only=True)
class Noise(Method):
    """Optimise the initial noise by gradients through the whole run. Run it with `s(…)`.

    It takes no `window` and no `every`.

    Args:
        iterations: the largest number of updates of the noise. Each takes a run with gradients.
        rate: the rms of an update. White noise has an rms of 1.
        white: whether to keep the norm of each block of the spectrum at that of white noise. If
            False, only `prior` keeps the norm of the whole noise near its expected value, as in
            ReNO.
        prior: the weight of the regulariser of ReNO. It has no effect with `white`.
        momentum: Nesterov's momentum, from 0 to below 1.
        patience: stop after this number of runs without a lower loss.
    """

    name: ClassVar[str] = "noise"
    windowed: ClassVar[bool] = False
    by_call: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    iterations: int = 20
    rate: float = 0.05
    white: bool = True
    prior: float = 1.0
    momentum: float = 0.9
    patience: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(1, "iterations", "patience")
        self.at_least(0, "rate", "prior", "momentum")
        if type(self.white) is not bool:
            raise UsageError(f"`white` is True or False, not {self.white!r}.")
        if self.momentum >= 1:
            raise UsageError(f"The momentum is at least 0 and less than 1, not {self.momentum}.")

    @property
    def runs(self) -> int:
        return self.iterations + 2

    def check(self, pipe: object) -> None:
        if "latents" not in call_signature(pipe).parameters:
            raise ClipguideError(
                f"{type(pipe).__name__} takes no `latents`, and noise optimises these: use "
                "shortcut or best-of."
            )

    def call(self, sampler, **settings):
        self._check_strength(sampler.pipe, settings)
        generator = settings.pop("generator", None) or one_seed()
        behind = None
        if settings.get("latents") is None:
            behind = restarted(generator)
            settings["latents"] = sampler.initial_noise(generator=behind, **settings)
        given = settings.pop("latents")
        z = widen(given.detach())  # half precision overflows in the norm
        spectrum = Spectrum(z.shape, z.device) if self.white else None

        def evaluate(z, gradient):
            latents = z.detach().to(given.dtype).requires_grad_()
            again = restarted(generator)
            given_too = {**settings, "latents": latents, "generator": again}
            return sampler.through(latents, gradient=gradient, behind=behind, **given_too)

        def update(z, direction):
            z = z - self.rate * direction
            return spectrum.whitened(z) if spectrum else z

        best = optimised(
            z,
            evaluate,
            lambda z, gradient: self._step(z, gradient, spectrum),
            update,
            iterations=self.iterations,
            momentum=self.momentum,
            patience=self.patience,
            tell=sampler.candidate,
        )
        latents = best.to(given.dtype)
        return sampler.sample(
            **settings, generator=generator, behind=behind, latents=latents, by=None
        )

    def _check_strength(self, pipe: object, settings: dict[str, object]) -> None:
        """Raise UsageError if the pipeline starts with an image, not with noise."""
        parameters = call_signature(pipe).parameters
        named = parameters.get("strength")
        strength = settings.get("strength", named.default if named else 1.0)
        optional = "image" in parameters and parameters["image"].default is None
        if optional and settings.get("image") is None:  # such as lpw_stable_diffusion from text
            return
        if strength < 0.999:
            raise UsageError(
                f"noise optimises pure noise, and strength={strength} begins with the image: give "
                "strength=1, or use shortcut."
            )

    def _step(
        self, z: torch.Tensor, gradient: torch.Tensor, spectrum: Spectrum | None
    ) -> torch.Tensor:
        if spectrum:
            gradient = spectrum.tangent(z, gradient)
        step = unit(gradient)
        if spectrum:
            return step
        size_B = z.flatten(1).square().sum(1)
        norm = 1 - (z[0].numel() - 1) / size_B
        return step + self.prior * along(norm, z) * z
