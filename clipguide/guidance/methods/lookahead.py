"""Lookahead: draw short samples (sketches), score them, and steer towards the good ones.

It takes no gradient. Source: Kim et al. 2026 (LiDAR sampling, ICML 2026, arXiv 2602.03211); the
equations are those of the ICML paper. For samples x0ᵏ of the model (algorithm 1) and their scores
r_k, the expected future reward of x_t is log Σ w_k exp(λ r_k) (eq. 15), with w_k ∝ p(x_t | x0ᵏ) and
the forward kernel N(α x0ᵏ, σ²); theirs has α = 1 (eq. 1). Its gradient has a closed form (eq. 16 to
18). Algorithm 2 adds it to the score, times the scale. By Tweedie's formula, it is a move of x0:

    x0 <- x0 + scale · (Σ w̃_k x0ᵏ − Σ w_k x0ᵏ),    w̃_k ∝ w_k exp(λ r_k).

In d dimensions, the exact kernel gives almost all the weight to one sample. The exponent is
therefore divided by `temperature` · d. The scores are standardised over the samples, so λ
(`sharpness`) has no unit.

Sketch k of a prompt has the same seed for every image, and all images of a prompt share the
sketches. A Lookahead keeps those of its latest prompts, so that further images of a prompt need no
new ones. Sketches that are drawn again have the same bits.

Shapes: B samples of P prompts, K sketches of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import UsageError, out_of_memory
from ..contract import Method
from ..generators import STRIDE
from ..pipe_parts import call_signature
from ..precision import along, widen
from ..run import At, Outcome, Run

KEPT = 16  # prompts whose sketches are kept
OWN = ("timesteps", "sigmas", "latents", "generator", "num_images_per_prompt")  # of the image's run
EACH = "num_images_per_prompt"
IMAGES = ("image", "mask_image", "control_image", "image_embeds", "ip_adapter_image")


@dataclass(frozen=True, kw_only=True)
class Lookahead(Method):
    """Draw and score `number` short samples (sketches), then steer towards the good ones.

    It needs no gradient, so any objective works. Run it with `s(…)`. This object keeps the sketches
    of a prompt, and draws them again if the weights, the arguments or the objective change.

    Args:
        number: the number of sketches of each prompt.
        steps: the number of steps of a sketch.
        scale: the factor of the move towards the good sketches; 0 changes no bit.
        sharpness: λ, how strongly better sketches are preferred. The scores are divided by their
            standard deviation, so it has no unit.
        temperature: how near a sketch must be to the sample to count, above 0. With a larger value,
            more sketches count.
        together: the largest number of sketches in a batch. It is halved if memory runs out.
        sketch_scheduler: the name of a scheduler class of diffusers that draws the sketches, such
            as "LCMScheduler". None uses the scheduler of the pipeline.
        sketch_adapter: the name of a LoRA adapter of the denoiser that only the sketches use, such
            as that of a distilled model.
        sketch_cfg: the scale of classifier-free guidance for the sketches. None uses that of the
            call.
    """

    name: ClassVar[str] = "lookahead"
    fades: ClassVar[bool] = True
    by_call: ClassVar[bool] = True

    number: int = 4
    steps: int = 6
    scale: float = 1.0
    sharpness: float = 4.0
    temperature: float = 0.1
    together: int = 8
    sketch_scheduler: str | None = None
    sketch_adapter: str | None = None
    sketch_cfg: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole(2, "number")
        self.whole(1, "steps", "together")
        self.at_least(0, "scale", "sharpness", "temperature")
        if not self.temperature > 0:
            raise UsageError(f"The temperature must be above 0, not {self.temperature}.")
        if self.sketch_cfg is not None:
            self.at_least(0, "sketch_cfg")
        for name in ("sketch_scheduler", "sketch_adapter"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise UsageError(f"{name} is a name, not {getattr(self, name)!r}.")
        object.__setattr__(self, "_kept", {})

    @classmethod
    def published(cls, **options: object) -> Lookahead:
        """Return the method with the settings of the paper for Stable Diffusion 1.5.

        The paper is Kim et al. 2026 (LiDAR sampling, arXiv 2602.03211, appendix B.1 and table 2).
        The settings are 50 sketches of 5 steps, scale 12.5, sharpness 3.05, and no steering below
        t = 200 of 1,000 (noise level 0.33).

        The sharpness is λ of the paper in the units of this class. There, λ is 5,000 for
        ImageReward, and squared distances are sums over the 4 · 64 · 64 = 16,384 numbers of the
        latents. Here, squared distances are divided by 16,384 and by `temperature`, which is 0.1.
        So λ is 5,000 / (0.1 · 16,384) = 3.05, if the standard deviation of ImageReward over the
        samples of a prompt is 1.

        The paper's code draws the sketches with DPM++ 2M, and the images with DDIM, η = 1 and 100
        steps. These are settings of the pipeline, and you make them yourself.

        Args:
            **options: arguments of `Lookahead` that replace these settings.
        """
        size = {"number": 50, "steps": 5, "scale": 12.5, "sharpness": 3.05, "window": (0.33, 1.0)}
        return cls(**{**size, **options})

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def idle(self) -> bool:
        return not self.scale

    def check(self, pipe: object) -> None:
        takes_it = "guidance_scale" in call_signature(pipe).parameters
        if self.sketch_cfg is not None and not takes_it:
            raise UsageError(
                f"{type(pipe).__name__} takes no guidance_scale: leave sketch_cfg out."
            )

    def start(self, run: Run) -> Callable[[At], Outcome]:
        x0_KP, score_KP = run.memory
        each = len(run.streams) // x0_KP.shape[1]
        x0_KB, score_KB = (kept.repeat_interleave(each, 1) for kept in (x0_KP, score_KP))

        def act(at: At) -> Outcome:
            delta = run.weight * self.scale * self.move(at, x0_KB, score_KB)
            if run.factor_B is not None:
                delta = along(run.factor_B, delta) * delta
            return Outcome(at.level.move(at.model_output, delta), at.sample, delta=delta)

        return act

    def move(self, at: At, x0_KB: torch.Tensor, score_KB: torch.Tensor) -> torch.Tensor:
        """Return Σ w̃_k x0ᵏ − Σ w_k x0ᵏ for each sample of the batch.

        x0ᵏ are the sketches. The weights w_k are larger for sketches that are nearer to the sample.
        The weights w̃_k are larger for nearer sketches and for those with better scores. Each set of
        weights has the sum 1.
        """
        level = at.level
        x = at.sample.to(x0_KB) * level.scale
        error_KB = (x - level.alpha * x0_KB).square().flatten(2).mean(2)
        kernel_KB = -error_KB / (2 * max(level.sigma, 1e-4) ** 2 * self.temperature)
        tilted_KB = (kernel_KB + self.sharpness * score_KB).softmax(0)
        weight_KB = tilted_KB - kernel_KB.softmax(0)
        return sum(along(weight_B, x0) * x0 for weight_B, x0 in zip(weight_KB, x0_KB))

    @property
    def runs(self) -> int:
        return self.number + 1

    def call(self, sampler, **settings):
        quick = {name: value for name, value in settings.items() if name not in OWN}
        quick["num_inference_steps"] = self.steps
        if self.sketch_cfg is not None:
            quick["guidance_scale"] = self.sketch_cfg
        key = sampler.identity(**quick)
        sketches = self._kept.get(key) if key else None
        if sketches is None:
            borrowed = {"scheduler": self.sketch_scheduler, "adapter": self.sketch_adapter}
            with sampler.borrowing(**borrowed):
                sketches = self._sketches(sampler, settings, quick)
            while key and len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            if key:
                self._kept[key] = sketches
        x0_KP, score_KP = sketches
        for score_P in score_KP:
            sampler.candidate(score_P)
        score_KP = _finite(score_KP)
        score_KP = (score_KP - score_KP.mean(0)) / score_KP.std(0).clamp_min(1e-12)
        with sampler.without(self.sketch_adapter):
            return sampler.sample(by=self, **settings, memory=(x0_KP, score_KP.to(x0_KP)))

    def _sketches(
        self, sampler, settings: dict[str, object], quick: dict[str, object]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x0_KP of the sketches of each prompt, and their scores."""
        given = settings.get("generator")
        known, prompts = EACH in call_signature(sampler.pipe).parameters, _prompts(settings)
        if not known:  # the pipeline may use another name for the size of a batch
            prompts = len(given) if isinstance(given, (list, tuple)) else 1
        # Some pipelines do not repeat embeddings for several images of a prompt. With input images
        # and several prompts, they repeat the images in another order than the prompts.
        images = any(settings.get(name) is not None for name in IMAGES)
        several = known and settings.get("prompt") is not None and (prompts == 1 or not images)
        together = self.together if several else 1
        x0s, scores = [], []
        while (drawn := sum(map(len, x0s))) < self.number:
            number = min(together, self.number - drawn)
            seeds = [(k + 1) * STRIDE for k in range(drawn, drawn + number)] * prompts
            made = [_generator(given, seed) for seed in seeds]
            batch = {**quick, **({EACH: number} if several else {})}
            batch["generator"] = made if len(made) > 1 else made[0]
            try:
                x0, score_B = sampler.ending(**batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or together == 1:
                    raise
                together //= 2
                continue
            x0s.append(widen(x0).unflatten(0, (-1, number)).transpose(0, 1))
            scores.append(score_B.unflatten(0, (-1, number)).transpose(0, 1))
        return torch.cat(x0s), torch.cat(scores)


def _prompts(settings: dict[str, object]) -> int:
    """Return the number of prompts of a call."""
    prompt = settings.get("prompt")
    if isinstance(prompt, (list, tuple)):
        return len(prompt)
    embeds = settings.get("prompt_embeds")
    return len(embeds) if prompt is None and embeds is not None else 1


def _generator(given: object, seed: int) -> torch.Generator:
    """Return a generator with that seed, on the device of the given one."""
    first = given[0] if isinstance(given, (list, tuple)) else given
    return torch.Generator(first.device if first is not None else "cpu").manual_seed(seed)


def _finite(score_KP: torch.Tensor) -> torch.Tensor:
    """Return the scores. Those that are not finite become the lowest of the others of the prompt,
    or 0."""
    least_P = torch.where(score_KP.isfinite(), score_KP, torch.inf).amin(0)
    least_P = torch.where(least_P.isfinite(), least_P, 0.0)
    return torch.where(score_KP.isfinite(), score_KP, least_P)
