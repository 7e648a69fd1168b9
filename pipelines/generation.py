"""The settings of text to image without the prompts: one frozen class for the call, the command and
the recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError, close_matches
from ..guidance.contract import Method
from ..guidance.generators import STRIDE
from ..guidance.methods import METHODS, configure
from ..guidance.steer import check_gradients
from ..prompts import check_text, parse, shorten
from ..recipe import Recipe
from ..rewards import Reward, wanted

STEPS = 30
CFG = 4.0
CUTOUTS = 4
MOST = 1000  # largest number of images per prompt, candidates per image, and steps
MAX_SEED = 2**63 - 1
# Settings that make the run steer.
STEERED = ("guide", "strength", "cutouts", "decoder", "tiny", "budget", "memory", "rewards")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The settings of a run from text to image.

    Args:
        guide: the text that the CLIP steers towards: one for all prompts, or one for each. None is
            the prompt itself.
        negative: the negative prompt of classifier-free guidance.
        count: the number of images of each prompt. The i-th has the seed `seed` + i.
        best_of: the number of candidates of each image. The seed of the k-th is that of the image
            plus k·1,000,000. The candidate with the lowest objective is kept; of candidates that
            nothing steered, the one that guide and judge together score highest. None is 1, or what
            the pipeline's own way draws.
        method: a name in `guidance.METHODS`, or an instance. The particles of an image are its
            candidates. "auto" chooses the method that gains most for `budget`. None is the
            pipeline's own way where no setting of steering is given, else "shortcut". The embedded
            generator's own way is to keep the best of 4 unsteered candidates (`usual`).
        strength: the strength of the steering as a fraction of rms(x0), a number or a schedule, as
            in `steer`. 0 is plain sampling. The default is that of the method.
        steps: the number of steps of the sampler. None is 30, or the pipeline's own number where
            nothing steers: 15 for the embedded generator.
        seed: from 0 to 2⁶³ − 1.
        cfg: the scale of classifier-free guidance; 1 is none.
        cfg_window: the noise levels at which classifier-free guidance applies, as in `steer`.
        size: the side in pixels, or width and height.
        budget: a multiple of the cost of plain sampling, from 1; or seconds an image, such as
            "30s", for which plain sampling is timed first. With method "auto" it limits the whole
            cost, 4 by default. Otherwise it limits the decoder "auto", 1.2 by default.
        memory: the memory in GiB that the decoder and its gradient may use besides the weights, as
            in `steer`.
        cutouts: the number of crops that the guide sees besides the whole image, from 0 to 256; 4
            by default.
        decoder: what decodes x0 for steering: "auto", the default, "vae", "linear" or "tiny", or a
            rung of the ladder such as "vae:half", as in `steer`. The recipe keeps the choice. The
            VAE always decodes the finished image.
        tiny: a folder of an AutoencoderTiny, or "hub", for "tiny" and "auto".
        rewards: rewards that steer together with the guide, such as "pickscore:0.5"
            (`rewards.wanted`). If all have gradients, these are balanced, so that a weight is a
            share of the gradient. Otherwise their values are added.
        select: rewards that select among candidates in place of the objective, in the same form,
            and by which particles, rollover and lookahead work.
        question: the question to the vision-language models among the rewards, with {} for the
            prompt.
        trust_pickle: whether weights of rewards may be read from pickles.
        refine: the number of steps of the optimisation loop on the latents of each finished image.
            The judge decides whether the result is kept.
        exact: whether to sample one image at a time. The bits of an image then do not depend on its
            neighbours.
        batch_size: the largest number of samples at a time. The default is 8, and 1 on a CPU, where
            a batch saves about a tenth of the time and changes the bits of an image; 4 for the
            embedded generator, where it saves a third.
        trace: whether to score at every step, for `Picture.trace`, instead of at every fifth.
        frames: whether to keep an image of each step in `Picture.frames`, which takes the time of
            one decoding.

    Raises:
        UsageError: a value is out of range.
    """

    guide: str | Sequence[str] | None = None
    negative: str = ""
    count: int = 1
    best_of: int | None = None
    method: str | type[Method] | Method | None = None
    strength: Any = None
    steps: int | None = None
    seed: int = 0
    cfg: float = CFG
    cfg_window: tuple[float, float] | None = None
    size: int | tuple[int, int] | None = None
    budget: float | str | None = None
    memory: float | None = None
    cutouts: int | None = None
    decoder: str | None = None
    tiny: str | Path | None = None
    rewards: Sequence[str] = ()
    select: Sequence[str] = ()
    question: str = ""
    trust_pickle: bool = False
    refine: int = 0
    exact: bool = False
    batch_size: int | None = None
    trace: bool = False
    frames: bool = False

    def __post_init__(self) -> None:
        check_text(self.negative)
        best_of = 1 if self.best_of is None else self.best_of
        steps = STEPS if self.steps is None else self.steps
        check_numbers(count=self.count, best_of=best_of, steps=steps)
        if self.batch_size is not None:
            check_numbers(batch_size=self.batch_size)
        if not 0 <= self.seed <= MAX_SEED - best_of * STRIDE - self.count:
            raise UsageError(
                f"The seed must be a whole number from 0 to about 2⁶³, not {self.seed}."
            )
        if not abs(self.cfg) < 1000:
            raise UsageError(f"The scale of classifier-free guidance cannot be {self.cfg}.")
        if self.cutouts is not None and not 0 <= self.cutouts <= 256:
            raise UsageError(f"cutouts must be from 0 to 256, not {self.cutouts}.")
        if not 0 <= self.refine <= MOST:
            raise UsageError(f"refine must be from 0 to {MOST}, not {self.refine}.")
        _check_rewards(self)
        if self.budget is not None and "auto" not in (self.method, self.decoder or "auto"):
            raise UsageError("A budget is for the method or the decoder auto, which choose by it.")

    def changed(self, changes: dict[str, object]) -> Generation:
        """Return the same settings with some changed.

        Raises:
            UsageError: there is no setting of that name. The message lists close matches.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise UsageError(
                    f"Text to image has no setting {name!r}.{close_matches(name, names)}"
                )
        return dataclasses.replace(self, **changes)

    @property
    def configured(self) -> Method:
        """Return the method, which is not auto, with its strength."""
        return configure(self.method or "shortcut", {"strength": self.strength})

    def usual(self, pipe: object, prompts: Sequence[str]) -> Generation:
        """Return the settings with the pipeline's own way of steering where none was asked for.

        A pipeline class whose `default_candidates` is above 1 says that candidates are cheaper than
        gradients: its denoiser costs less than a look by CLIP. Then an image is the best of so many
        unsteered ones. A setting that is about steering, or a weight in a prompt, which only the
        guide reads, asks for "shortcut" instead.
        """
        own, number = getattr(type(pipe), "default_candidates", 1), self.best_of
        given = [getattr(self, name) for name in STEERED]
        steered = any(value is not None and value != () and value != [] for value in given)
        weighed = any(part.weight != 1 for prompt in prompts for part in parse(prompt).parts)
        if self.method is not None or own == 1 or steered or weighed:
            chosen = replace(self, method=self.method or "shortcut", best_of=number or 1)
        else:
            chosen = replace(self, method="shortcut", strength=0.0, best_of=number or own)
        few = getattr(type(pipe), "default_steps", STEPS) if chosen.strength == 0 else STEPS
        return replace(chosen, steps=self.steps or few)

    @classmethod
    def of(cls, recipe: Recipe) -> Generation:
        """Return the settings of a recipe, without its batch, which `replay` has.

        Raises:
            UsageError: the recipe names a setting that does not exist.
        """
        return cls(
            guide=recipe.guide,
            negative=recipe.negative,
            best_of=recipe.best_of,
            method=method_of(recipe),
            steps=recipe.steps,
            seed=recipe.seed,
            cfg=recipe.cfg,
            size=(recipe.width, recipe.height),
            cutouts=recipe.cutouts,
            decoder=recipe.decoder,
            tiny=recipe.tiny or None,
            refine=recipe.refine,
            rewards=tuple(recipe.rewards),
            select=tuple(recipe.selected_by),
            question=recipe.question,
            cfg_window=_numbers(recipe.cfg_window),
        )


def _check_rewards(asked: Generation) -> None:
    """Raise UsageError for a reward that is unknown, lacks its package, is repeated, or has no
    gradient if the method needs one."""
    for given in (asked.rewards, asked.select):
        if isinstance(given, str):
            raise UsageError(f"Rewards are a list, as [{given!r}].")
        if len(set(given)) < len(given):
            raise UsageError("A reward is given twice: give it once, with a weight.")
    pulls = [Reward(str(replace(wanted(text), weight=1.0))) for text in asked.rewards]
    for text in asked.select:
        wanted(text)
    if pulls and asked.method == "auto":
        raise UsageError("auto was measured without rewards: name a method, or let them select.")
    if pulls:
        check_gradients(sum(pulls), asked.configured)


def method_of(recipe: Recipe) -> Method:
    """Return the method of a recipe. Raise UsageError for an unknown method."""
    try:
        options = {name: json.loads(value) for name, value in recipe.options.items()}
        fields = dataclasses.fields(METHODS[recipe.method]) if recipe.method in METHODS else ()
        if "strength" in [field.name for field in fields]:
            options.setdefault("strength", recipe.strength)
        return configure(recipe.method, options)
    except (TypeError, ValueError, RecursionError):
        raise UsageError(f"The recipe's options of {shorten(recipe.method)} are wrong.") from None


def _numbers(text: str) -> tuple[float, ...] | None:
    """Return the numbers of a text such as "0.2,0.8", or None. Raise UsageError for anything else.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise UsageError(f"{shorten(text)!r} are no two noise levels, as 0.2,0.8.") from None


def recipe_options(method: Method) -> tuple[float, dict[str, str]]:
    """Return the strength and the options of a method as a recipe stores them. Raise UsageError for
    values without a text form, such as a schedule of a function."""
    options = method.options()
    strength = options.pop("strength", getattr(method, "strength", 0.0))
    spelt = {name: json.dumps(value) for name, value in options.items()}
    if isinstance(strength, (int, float)):
        return float(strength), spelt
    spec = strength.to_spec()
    most = max(end for piece in strength.pieces for end in (piece.first, piece.last))
    return most, {**spelt, "strength": json.dumps(spec)}


def check_numbers(**numbers: int) -> None:
    """Raise UsageError for a number that is not from 1 to MOST."""
    for name, value in numbers.items():
        if not 1 <= value <= MOST:
            raise UsageError(f"{name} must be from 1 to {MOST}, not {value}.")
