"""The settings of text to image, without the prompts. The call, the command and the recipe use the
same class."""

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
from .drawing import digest

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
        guide: the prompt for the guide, which the generator does not get (`--clip-prompt`): one for
            all prompts, or one for each. None means the prompt itself.
        negative: the negative prompt of classifier-free guidance.
        count: the number of images of each prompt. The i-th has the seed `seed` + i.
        best_of: the number of candidates of each image. The seed of the k-th is that of the image
            plus k·1,000,000. The candidate with the lowest objective is kept. If nothing steers, it
            is the one with the highest sum of minus the objective and the score of the judge. None
            means 1, or 4 with the embedded generator if there is neither a steering option nor a
            weight in a prompt.
        method: the name of a method, or an instance. The particles of an image are its candidates.
            "auto" chooses the method with the highest gain for `budget`; with the embedded
            generator, also the number of steps, if `steps` is None. None means "shortcut".
            With the embedded generator and no steering option, nothing steers: see `usual`.
        strength: the length of a move as a fraction of the rms of x0: a number or a schedule, as in
            `steer`. 0 is plain sampling. The default is that of the method.
        steps: the number of steps of the sampler. None means 30, or 8 with the embedded generator
            if nothing steers in these steps, as with the method "drafts"; see also "auto".
        seed: from 0 to 2⁶³ − 1.
        cfg: the scale of classifier-free guidance; 1 is none.
        cfg_window: the noise levels at which classifier-free guidance applies, as in `steer`.
        size: the side in pixels, or width and height.
        budget: the highest cost: a multiple of that of plain sampling, from 1; or seconds for each
            image, such as "30s", for which plain sampling is timed first. With method "auto", it
            limits the whole cost, and is 4 by default. Otherwise it limits the choice of decoder
            "auto", and is 1.2 by default.
        memory: the memory in GiB that the decoder and its gradient may use besides the weights, as
            in `steer`.
        cutouts: the number of crops that the guide sees in addition to the whole image, from 0 to
            256; 4 by default.
        decoder: what decodes x0 for steering, as in `steer`: "auto" (the default), "vae", "linear",
            "tiny", or one of these at a level of memory, such as "vae:half". The recipe has the
            choice. The VAE always decodes the finished image.
        tiny: a folder of an AutoencoderTiny, or "hub", for "tiny" and "auto".
        rewards: rewards that steer together with the guide, as `--reward` takes them, such as
            "pickscore:0.5". If all have gradients, the gradients are scaled to equal size, so that
            a weight is the size of a gradient. Otherwise the values are added.
        select: rewards in the same form, which select among candidates in place of the objective.
            "particles", "rollover", "lookahead" and the first drafts of "drafts" use them too.
        question: the question to the vision-language models among the rewards, with {} for the
            prompt.
        trust_pickle: whether weights of rewards may be read from pickles.
        like: an image file that the images are to be like, for the embedded generator. It reads
            coarsely what is where in it. Without a prompt, an image follows that, and CLIP compares
            with the file. With a prompt, it keeps about the pose, and changes to what the prompt
            says. A file that is no square is cut to one.
        refine: the number of steps of the optimisation loop on the latents of each finished image.
            The result is kept if the judge prefers it.
        exact: whether to sample one image at a time. The bits of an image then do not depend on the
            other images.
        batch_size: the largest number of samples in a batch. The default is 8. On a CPU it is 1, or
            4 for the embedded generator. There, a batch changes the bits of an image, and saves
            about a tenth of the time, or a third for the embedded generator.
        trace: whether to score at every step, for `Picture.trace`, instead of at every fifth.
        frames: whether to keep an image of each step in `Picture.frames`. Each takes the time of
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
    like: str | Path | None = None
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
        if self.like is not None:
            digest(str(self.like))  # an error comes now, before a model is loaded
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
        """Return the settings with the pipeline's defaults for `method`, `best_of` and `steps`.

        If the pipeline class has a `default_best_of`, as that of the embedded generator has,
        nothing steers, and the best of so many samples is kept, or of `best_of`. But a weight in a
        prompt, which only steering sees, makes it steer by "shortcut", as a steering option does.

        Args:
            pipe: the pipeline.
            prompts: the prompts.
        """
        own, number = getattr(type(pipe), "default_best_of", None), self.best_of
        given = [getattr(self, name) for name in STEERED]
        steered = any(value is not None and value != () and value != [] for value in given)
        parts = [part for prompt in prompts if prompt for part in parse(prompt).parts]
        weighed = any(part.weight != 1 for part in parts)
        if self.method is not None or own is None or steered or weighed:
            chosen = replace(self, method=self.method or "shortcut", best_of=number or 1)
        else:
            chosen = replace(self, method="shortcut", strength=0.0, best_of=number or own)
        return replace(chosen, steps=self.steps or _usual_steps(pipe, chosen))

    @classmethod
    def of(cls, recipe: Recipe) -> Generation:
        """Return the settings of a recipe. They do not include the batch of the image: `replay`
        reads it from the recipe.

        Raises:
            UsageError: the recipe names a setting that does not exist, or an image that has
                changed.
        """
        for file, known in recipe.like.items():
            if digest(file) != known:
                raise UsageError(f"{file} is not the image that the recipe began with.")
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
            like=next(iter(recipe.like), None),
        )


def _usual_steps(pipe: object, asked: Generation) -> int:
    """Return the number of steps of a run that names none: STEPS, or that of the pipeline's class
    if nothing steers in these steps."""
    if asked.method == "auto":
        return STEPS
    method = asked.configured  # which may have its strength from elsewhere
    idle = getattr(method, "strength", None) == 0 or method.prepares
    return getattr(type(pipe), "default_steps", STEPS) if idle else STEPS


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
