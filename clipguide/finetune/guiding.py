"""Make a CLIP a better guide: train its image encoder on images that an attack has changed.

The gradient of an ordinary CLIP is mostly noise that fools it. The gradient of a CLIP that was
trained against attacks draws shapes (CLIPAG, Ganz & Elad 2024). With labels, the loss is the
cross-entropy against the texts of the classes (TeCoA, Mao et al. 2023, eq. 3). Without labels, it
is the squared distance to the original embedding of the clean image (FARE, Schlarmann et al. 2024,
eq. 3). The attack raises the loss that the training lowers. Noise is added to some images, and
others are blurred, like the estimate of x0 in the middle of sampling. The text encoder is frozen,
and batch norms keep their statistics.

    for step in for_guiding(parts, batches, classes=names, config=GuidingConfig(minutes=60)):
        print(step.index, step.loss)
    parts.save(Path("my-guide"))

Legend: B batch, K classes, D embedding, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.parts import Parts
from ..errors import UsageError, close_matches
from ..zero_shot import class_vectors
from .attacks import ATTACKS
from .fit import Fit, FitConfig, FitStep
from .losses import bank_loss
from .methods import is_scale, is_text

METHODS = ("tecoa", "fare")
REFERENCE = 128  # side in pixels for which the L2 radii hold
EPSILON = {"l2": (0.5, 4.5), "linf": (0.5 / 255, 5 / 255)}
MINUTES = 240.0
MAX_SCALE = 100.0  # largest scale of the logits, as in CLIP


@dataclass(frozen=True, kw_only=True)
class GuidingConfig:
    """How to make a guide.

    Args:
        minutes: the length of the training in minutes of processor time, if `steps` is None. The
            default is 240, which are two hours on two cores.
        steps: the number of steps, instead of `minutes`.
        method: "tecoa", which needs labels and the names of classes, or "fare", which needs
            neither.
        norm: the norm of the attack: "l2" or "linf".
        epsilon: the smallest and the largest radius of the attack, for pixels in [0, 1]. The radius
            of each image is random. The default for L2 is 0.5 to 4.5 at 128 pixels a side, in
            proportion for other sizes; for L∞ it is 0.5/255 to 5/255.
        attack_steps: the number of steps of the attack. Each takes as long as a step of training.
        keep: the weight of the FARE loss that "tecoa" adds to its own. It keeps the embeddings of
            images that the classes do not describe.
        noised: the share of images with added Gaussian noise.
        blurred: the share of blurred images.
        noise: the largest sigma of the noise.
        lr: the learning rate; by default 2e-4 for encoders with batch norms, 1e-5 for transformers.
        templates: the templates of the texts of a class, whose embeddings are averaged.
    """

    minutes: float | None = None
    steps: int | None = None
    method: str = "tecoa"
    norm: str = "l2"
    epsilon: tuple[float, float] | None = None
    attack_steps: int = 1
    keep: float = 1.0
    noised: float = 0.4
    noise: float = 0.35
    blurred: float = 0.2
    lr: float | None = None
    warmup: int = 100
    templates: tuple[str, ...] = ("{}",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, METHODS), ("norm", self.norm, ATTACKS)):
            if value not in known:
                raise UsageError(f"There is no {name} {value!r}.{close_matches(value, known)}")
        if self.epsilon and not 0 <= self.epsilon[0] <= self.epsilon[1]:
            raise UsageError(
                "epsilon is the least and the largest radius, from 0 on, not "
                f"{self.epsilon[0]:g} and {self.epsilon[1]:g}."
            )
        if self.attack_steps < 1:
            raise UsageError(f"The attack needs at least one step, not {self.attack_steps}.")
        if not (min(self.noised, self.blurred) >= 0 and self.noised + self.blurred <= 1):
            raise UsageError(
                "The shares of noised and blurred images lie in [0, 1], as their sum."
            )
        if min(self.noise, self.keep) < 0:
            raise UsageError("noise and keep are at least 0.")
        if self.lr is not None and not 0 < self.lr < 1:
            raise UsageError(f"The rate lr lies between 0 and 1, not {self.lr:g}.")
        if not self.templates or any("{}" not in template for template in self.templates):
            raise UsageError("A template of a class's texts has {} where its name goes.")

    def radii(self, image_size: int) -> tuple[float, float]:
        """Return the smallest and the largest radius for images of that side."""
        if self.epsilon:
            return self.epsilon
        factor = image_size / REFERENCE if self.norm == "l2" else 1.0
        low, high = EPSILON[self.norm]
        return low * factor, high * factor


class GuidingLoss:
    """The loss of a batch under attack, for `Fit`. A batch is a dict with image_B3HW in [0, 1] at
    the size of the encoder and, for "tecoa", label_B, or target_BK of probabilities.

    `state_dict` holds the state of the random numbers, so that a loss that loads it continues
    identically.
    """

    def __init__(self, parts: Parts, classes: Sequence[str], config: GuidingConfig) -> None:
        self.config, self.normalise = config, parts.normalise
        self.radii = config.radii(parts.image_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.original = copy.deepcopy(parts.model).eval().requires_grad_(False)
        self.bank_KD = None
        if config.method == "tecoa":
            if len(set(classes)) < 2:
                raise UsageError(
                    "TeCoA trains against the names of classes and needs at least two; FARE, "
                    'method="fare", needs neither names nor labels.'
                )
            self.bank_KD = class_vectors(parts.live(), [[c] for c in classes], config.templates)

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])

    def soften(self, image_B3HW: Tensor) -> Tensor:
        """Add noise to some images, each with its own sigma, and blur others to a quarter of their
        size."""
        draw = torch.rand(2, len(image_B3HW), 1, 1, 1, generator=self.generator)
        draw = draw.to(image_B3HW)
        noise = torch.randn(image_B3HW.shape, generator=self.generator).to(image_B3HW)
        noised = image_B3HW + self.config.noise * draw[1] * noise
        small = F.interpolate(image_B3HW, scale_factor=0.25, mode="area")
        blurred = F.interpolate(small, size=image_B3HW.shape[-2:], mode="bilinear")
        share = self.config.noised
        soft = torch.where(draw[0] < share, noised, image_B3HW)
        below = (share <= draw[0]) & (draw[0] < share + self.config.blurred)
        return torch.where(below, blurred, soft).clamp(0, 1)

    def __call__(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict[str, float]]:
        image = batch["image"].to(model.logit_scale.device)
        with torch.no_grad():
            clean_BD = self.original.encode_image(self.normalise(image))
        target_BK = None if self.bank_KD is None else self._target(batch).to(image)
        scale = model.logit_scale.exp().clamp(max=MAX_SCALE)

        def losses(moved_B3HW: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            """Return (loss of the classes_B, distance to the original_B)."""
            moved_BD = model.encode_image(self.normalise(moved_B3HW))
            away_B = fare_loss(moved_BD, clean_BD)
            if target_BK is None:
                return torch.zeros_like(away_B), away_B
            unit_BD = F.normalize(moved_BD, dim=-1)
            return bank_loss(unit_BD, self.bank_KD, target_BK, scale), away_B

        weight = 1.0 if target_BK is None else self.config.keep
        low, high = self.radii
        radius_B = low + (high - low) * torch.rand(len(image), generator=self.generator)
        fixed = scale.detach()

        def attacked(moved_B3HW: Tensor) -> Tensor:
            class_B, away_B = losses(moved_B3HW, fixed)
            return class_B + weight * away_B

        moved = ATTACKS[self.config.norm](
            attacked,
            self.soften(image),
            radius_B=radius_B,
            steps=self.config.attack_steps,
            generator=self.generator,
        )
        class_B, away_B = losses(moved, scale)
        metrics = {"away": away_B.mean().item()}
        if target_BK is not None:
            metrics = {"classes": class_B.mean().item(), **metrics, "scale": fixed.item()}
        return (class_B + weight * away_B).mean(), metrics

    def _target(self, batch: dict) -> Tensor:
        """Return probabilities_BK of the classes."""
        if batch.get("target") is not None:
            return batch["target"]
        if batch.get("label") is None:
            raise UsageError(
                'TeCoA needs a class for each image, and there is none: method="fare" does '
                "without."
            )
        return F.one_hot(batch["label"], len(self.bank_KD)).float()


def fare_loss(image_BD: Tensor, clean_BD: Tensor) -> Tensor:
    """Return loss_B = ‖φ(x) − φ_org(x)‖² (Schlarmann et al. 2024, eq. 3), divided by the mean
    squared length of φ_org(x), so that the learning rate does not depend on the length of a CLIP's
    embeddings."""
    unit = clean_BD.square().sum(-1).mean().clamp_min(1e-12)
    return (image_BD - clean_BD).square().sum(-1) / unit


def guiding_fit(
    parts: Parts, *, classes: Sequence[str] = (), config: GuidingConfig = GuidingConfig()
) -> Fit:
    """Return the `Fit` of `for_guiding`, for your own loop: `fit.average.model` is the guide. It
    trains `parts.model` in place: the image encoder, and with labels the scale of the logits."""
    model = parts.model.eval()  # batch norms keep their statistics
    loss = GuidingLoss(parts, list(classes), config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_text(name) and not is_scale(name))
    model.logit_scale.requires_grad_(config.method == "tecoa")
    norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    rate = config.lr or (2e-4 if norms else 1e-5)
    minutes = MINUTES if config.minutes is config.steps is None else config.minutes
    length = FitConfig(minutes=minutes, steps=config.steps, lr=rate, warmup=config.warmup)
    return Fit(model, loss, length)


def for_guiding(
    parts: Parts,
    batches: Iterable[dict],
    *,
    classes: Sequence[str] = (),
    config: GuidingConfig = GuidingConfig(),
) -> Iterator[FitStep]:
    """Make a CLIP a better guide, step by step.

    It trains `parts.model` in place. When the generator ends or is closed, the model has the
    averaged weights.

    Args:
        parts: the parts of a CLIP, as `load_parts` returns them.
        batches: dicts as `GuidingLoss` takes them. The training ends with them, or after the
            minutes.
        classes: the names of the labels, for "tecoa".
        config: the method, the norm, the noise and the minutes.

    Raises:
        UsageError: "tecoa" has no classes or labels.
    """
    fit = guiding_fit(parts, classes=classes, config=config)
    try:
        yield from fit.run(batches)
    finally:
        parts.model.load_state_dict(fit.average.model.state_dict())
        parts.model.requires_grad_(False)
