"""The settings of a drawing on a canvas: their checks, and their recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .. import images
from ..canvases.base import LEAST, MOST
from ..errors import UsageError, close_matches
from ..objectives.pixels import AXES
from ..prompts import ImagePart, parse, shorten
from ..recipe import Recipe
from ..rewards import Wanted, wanted
from ..rewards.registry import MOST as MOST_REWARD
from ..views import Cutouts, Views, Warped
from .canvas_kinds import CANVASES
from .typed import typed

STARTS = ("light", "own")
SDS = 2.0  # weight of score distillation by default, beside a weight of 1 for the guide
FADE = 0.9  # share of the run over which the guide's pull falls to 0, with score distillation
MICRO = 32  # views encoded at a time: memory does not grow beyond
SMALLEST = 32  # pixels of the shorter side that a growing canvas begins with, at least
FILES = ("init", "mask", "pictures")
# A recipe has these elsewhere; score distillation is one of its rewards.
ELSEWHERE = ("steps", "size", "cutouts", "sds", "rewards", "question", "trust_pickle")
LIMITS = {  # the least and the most of each number
    "steps": (1, 100_000),
    "cutouts": (1, 4096),
    "grow": (1, 8),
    "every": (1, 100_000),
    "score_every": (1, 100_000),
    "patience": (1, 100_000),
    "lr": (0, 1000),
    "decay": (0, 1),
    "ema": (0, 0.99999),
    "smooth": (0, 1e6),
    "init_weight": (0, 1e6),
    "palette_weight": (0, 1e6),
    "sds": (0, MOST_REWARD),
    "fade": (0, 1),
    "temperature": (0, 1e6),
    "zoom": (0.1, 10),
    "rotate": (-360, 360),
}
VIEWS = {  # name -> a function from the number of views to the views
    "plain": lambda n: Cutouts(number=n, whole=False, size_range=(0.4, 1.0)),
    "warped": lambda n: Warped(  # small crops would draw the object again in every corner
        overview=n // 2,
        inner=n - n // 2,
        size_range=(0.75, 1.0),
        perspective=0.15,  # reflected: with "border", the last pixels would get all the gradient
    ),
    "vqgan-clip": lambda n: Warped.vqgan_clip(number=n),
    "disco": lambda n: Warped.disco(overview=-(-3 * n // 4), inner=n - -(-3 * n // 4)),
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The settings of a drawing on a canvas.

    Args:
        steps: the number of steps of the loop.
        size: width and height in pixels. The default is 256 each.
        lr: the learning rate of Adam at the first step. Its unit is the rms of the codes of a
            VQGAN. The default is that of the canvas.
        decay: the factor of `lr` at the last step.
        cutouts: the number of views in a step. At most 32 are encoded at a time, and their
            gradients are added. Each group has the same size, so there may be a few views more.
        views: "plain" crops; "warped", which are also rotated and recoloured; or those of the
            notebooks, "vqgan-clip" and "disco".
        ema: the decay of the moving average of the parameters, from 0. The images that are shown,
            scored and kept are those of the average.
        grow: the number of sizes. Each is twice the one before, and the last one is `size`. The
            default is 1; without `size`, "vqgan" begins with half of it, unless the image moves.
        smooth: the weight of the total variation.
        temperature: the softness of the codes of a VQGAN (`--softness`); 0 rounds them.
        start: "light" begins with a pale blur that depends on the seed, "own" with the canvas's own
            initial image. The default is "own" for "fourier", otherwise "light".
        init: an image file to begin with, in place of `start`.
        init_weight: the weight of the mean squared error to `init`.
        mask: an image file that is white where the image may change. Elsewhere the image of `init`
            stays.
        pictures: image files that the image must resemble, in addition to the prompt
            (`--image-prompt`). Each has a weight of 1.
        tile: whether opposite edges fit.
        symmetry: "horizontal" or "vertical".
        palette: the colours to use, as "#rrggbb".
        palette_weight: the weight of the palette.
        prompts_at: pairs of a step and the prompt from that step on (`--prompt-at`).
        every: the number of steps between two moves of the image (`--frame-every`).
        zoom: the factor of each move, which enlarges the image.
        rotate: the angle of each move, in degrees anticlockwise.
        shift: the shift of each move, in pixels to the right and down.
        score_every: the number of steps between two scores of guide and judge.
        patience: stop after this number of scores without a higher score by the judge.
        sds: the weight of score distillation: the gradient towards what the embedded generator sees
            in the image (the reward "sds"), beside a weight of 1 for the guide. The default is 2
            with the guide "mini", unless the image has an `init` or `pictures`, moves, tiles or
            changes its prompt; otherwise it is 0.
        fade: the share of the run over which the pull of the guide falls from 1 to 0. The rewards
            keep theirs. 0 means that the guide pulls to the end. The default is 0.9 with score
            distillation, unless the image moves or changes its prompt; otherwise 0. The guide draws
            details that the generator leaves out, and the generator then removes the grain of the
            guide's gradient. Only images from then on are scored and kept.
        rewards: rewards that are optimised together with the guide, as `--reward` takes them, such
            as "pickscore:0.5". Their gradients are scaled to equal size, so that a weight is the
            size of a gradient. Each reward needs a gradient.
        question: the question to the vision-language models among the rewards, with {} for the
            prompt.
        trust_pickle: whether weights of rewards may be read from pickles.

    Raises:
        UsageError: a value is out of range.
    """

    steps: int = 200
    size: tuple[int, int] | None = None
    lr: float | None = None
    decay: float = 0.1
    cutouts: int = 8
    views: str = "warped"
    ema: float = 0.9
    grow: int | None = None
    smooth: float = 0.0
    temperature: float = 0.0
    start: str = ""
    init: str = ""
    init_weight: float = 0.0
    mask: str = ""
    pictures: tuple[str, ...] = ()
    tile: bool = False
    symmetry: str = ""
    palette: tuple[str, ...] = ()
    palette_weight: float = 1.0
    prompts_at: tuple[tuple[int, str], ...] = ()
    zoom: float = 1.0
    rotate: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    every: int = 10
    score_every: int = 10
    patience: int | None = None
    sds: float | None = None
    fade: float | None = None
    rewards: tuple[str, ...] = ()
    question: str = ""
    trust_pickle: bool = False

    def settled(self, canvas: str, *, encodes: bool = True, distils: bool = False) -> Drawing:
        """Return the same with the size and the number of sizes that the canvas has by default, and
        with score distillation among the rewards.

        Args:
            canvas: the name of the canvas.
            encodes: whether it can begin with an image. One that cannot does not grow.
            distils: whether score distillation is the default.

        Raises:
            UsageError: as `check` does.
        """
        kind, grow = CANVASES[canvas], self.grow
        if self.size is None and grow is None and encodes and not self.moving:
            grow = kind.grow if 1 < kind.grow <= self.steps else None
        self.check(canvas)
        rewards, weight = self.rewards, self.sds
        if weight is None:
            bound = self.init or self.pictures or self.tile or self.moving or self.prompts_at
            weight = 0.0 if bound or distilled(rewards) or not distils else SDS
        if weight:
            rewards = (str(Wanted("sds", weight=weight)), *rewards)
        size = self.size or (kind.side, kind.side)
        sds = None if distilled(rewards) else 0.0
        finishes = distilled(rewards) and not (self.moving or self.prompts_at)
        fade = (FADE if finishes else 0.0) if self.fade is None else self.fade
        return replace(self, size=size, grow=grow, rewards=rewards, sds=sds, fade=fade)

    def check(self, canvas: str) -> None:
        """Raise UsageError if a setting is out of range, or belongs to another canvas."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} must be from {low:g} to {high:g}, not {value:g}.")
        for side in self.size or ():
            if not LEAST <= side <= MOST:
                raise UsageError(f"A side of an image has {LEAST} to {MOST} pixels, not {side}.")
        if not all(abs(pixels) <= MOST for pixels in self.shift):
            raise UsageError(f"shift is at most {MOST} pixels, not {self.shift}.")
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"The rate lr must be above 0, not {self.lr:g}.")
        if self.temperature and self.temperature < 1e-6:
            raise UsageError(
                f"The softness (temperature) is 0, or at least 1e-06, not {self.temperature:g}."
            )
        if self.symmetry and self.symmetry not in AXES:
            raise UsageError(f"symmetry is horizontal or vertical, not {self.symmetry!r}.")
        if self.views not in VIEWS:
            raise UsageError(
                f"There are no views {self.views!r}.{close_matches(self.views, VIEWS)}"
            )
        if self.start and self.start not in STARTS:
            near = close_matches(self.start, STARTS)
            raise UsageError(f"There is no start {self.start!r}.{near}")
        if self.mask and not self.init:
            raise UsageError("A mask keeps what init shows outside of it: give an init image.")
        if self.init_weight and not self.init:
            raise UsageError("init_weight keeps the image near init: give an init image.")
        if self.palette_weight != 1 and not self.palette:
            raise UsageError("palette_weight keeps to a palette: give one.")
        if self.temperature and canvas != "vqgan":
            raise UsageError(
                "softness (temperature) softens a VQGAN's codes: leave it out, or give the canvas "
                "vqgan."
            )
        grow = self.sizes
        if self.steps < grow:
            raise UsageError(f"{grow} sizes need as many steps, not {self.steps}.")
        if self.moving and (self.mask or grow > 1):
            raise UsageError("An image that moves has no mask and does not grow: leave these out.")
        if self.moving and self.patience is not None:
            raise UsageError("An image that moves is kept as it ends: leave patience out.")
        self._check_prompts()
        self._check_rewards()

    def _check_rewards(self) -> None:
        """Raise UsageError for a reward that is unknown, is repeated, or has no gradient."""
        if len(set(self.rewards)) < len(self.rewards):
            raise UsageError("A reward is given twice: give it once, with a weight.")
        if self.sds is not None and distilled(self.rewards):
            raise UsageError(
                "sds (--sds) and a reward sds both give the weight of score distillation: leave "
                "one of them out."
            )
        if self.fade and not self.sds and not self.rewards and self.sds is not None:
            raise UsageError(
                "fade takes the pull of the guide away, and nothing else would pull to the prompt: "
                "leave it out, or give sds or a reward."
            )
        if self.fade and self.prompts_at:
            raise UsageError(
                "fade takes the pull of the guide away, which a later prompt (--prompt-at) needs: "
                "leave one of them out."
            )
        for text in self.rewards:
            if not wanted(text).kind.gradient:
                raise UsageError(
                    f"{text} has no gradient, and a canvas is drawn by gradients: let it choose "
                    "among finished images (clipguide rerank --reward)."
                )

    def _check_prompts(self) -> None:
        starts = [start for start, _ in self.prompts_at]
        if any(b <= a for a, b in zip(starts, starts[1:])):
            raise UsageError(f"The prompts' steps must go up: {starts} do not.")
        if starts and not (starts[0] >= 0 and starts[-1] < self.steps):
            raise UsageError(
                f"A prompt begins at a step from 0 to {self.steps - 1}, not at {starts[-1]}."
            )
        for _, prompt in self.prompts_at:
            parse(prompt)

    @property
    def sizes(self) -> int:
        """Return the number of sizes."""
        return 1 if self.grow is None else self.grow

    @property
    def moving(self) -> bool:
        """Return whether the image is moved while it is drawn."""
        return self.zoom != 1 or self.rotate != 0 or any(self.shift)

    @property
    def accumulate(self) -> int:
        """Return the number of calls of the objective in a step, of at most `MICRO` views each."""
        return -(-self.cutouts // MICRO)

    @property
    def judge_from(self) -> int:
        """Return the first step whose image may be kept.

        All prompts apply by then, and the guide has faded. If the image is moved, only the last
        step is kept.
        """
        if self.moving:
            return self.steps - 1
        faded = math.ceil((self.fade or 0.0) * (self.steps - 1))
        return max(faded, self.prompts_at[-1][0] if self.prompts_at else 0)

    @property
    def scores(self) -> int:
        """Return how often the judge scores: at every `score_every`-th step from `judge_from` on,
        and at the last."""
        return -(-self.steps // self.score_every) - self.judge_from // self.score_every

    @property
    def beside(self) -> bool:
        """Return whether the loss has terms besides the guide and the rewards."""
        return bool(self.smooth or self.palette or (self.init and self.init_weight))

    def seen(self) -> Views:
        """Return the views of one call of the objective."""
        return VIEWS[self.views](-(-self.cutouts // self.accumulate))

    def stages(self, factor: int) -> list[tuple[int, int, int, int]]:
        """Return height, width, first step and the step after the last of each size.

        Sides are multiples of `factor`. Sizes that are too small to draw are left out.
        """
        width, height = self.size
        sizes = []
        for k in reversed(range(self.sizes)):
            small = tuple(side // 2**k // factor * factor for side in (height, width))
            if k == 0 or min(small) >= max(factor, SMALLEST):
                sizes.append((height, width) if k == 0 else small)
        share = self.steps // len(sizes)
        firsts = [k * share for k in range(len(sizes))]
        return [
            (*size, first, after)
            for size, first, after in zip(sizes, firsts, [*firsts[1:], self.steps], strict=True)
        ]

    def image_parts(self) -> list[ImagePart]:
        """Return the images that the image must resemble."""
        return [ImagePart(images.load(file)) for file in self.pictures]

    def options(self) -> dict[str, str]:
        """Return the settings that differ from their defaults, each as JSON, for a recipe.

        Files have digests. The recipe has the steps, the size, the cutouts and the rewards itself.
        In a recipe, the default of `fade` is 0.
        """
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = 0 if field.name == "fade" else field.default
            if field.name not in ELSEWHERE and value != default:
                found[field.name] = json.dumps(value)
        digests = {file: digest(file) for name in FILES for file in _listed(getattr(self, name))}
        return {**found, "digests": json.dumps(digests)} if digests else found

    @classmethod
    def of(cls, recipe: Recipe, *, trust_pickle: bool = False) -> Drawing:
        """Return the settings of a recipe; pickles are read only where you trust them.

        Raises:
            UsageError: they are not valid, or a file has changed.
        """
        try:
            options = {name: json.loads(value) for name, value in recipe.options.items()}
            options.setdefault("fade", 0.0)
            digests = options.pop("digests", {})
            if not isinstance(digests, dict):
                raise ValueError(digests)
            if found := set(ELSEWHERE) & set(options):
                raise ValueError(found)
            fields = {field.name: field.default for field in dataclasses.fields(cls)}
            settings = {name: typed(name, value, fields[name]) for name, value in options.items()}
            drawing = cls(
                **settings,
                steps=recipe.steps,
                cutouts=recipe.cutouts,
                size=(recipe.width, recipe.height),
                sds=None if distilled(recipe.rewards) else 0.0,
                rewards=tuple(recipe.rewards),
                question=recipe.question,
                trust_pickle=trust_pickle,
            )
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError):
            method = shorten(recipe.method)
            raise UsageError(f"The recipe's options of {method} are wrong.") from None
        drawing.check(recipe.method)
        for name in FILES:
            for file in _listed(getattr(drawing, name)):
                if file not in digests or digest(file) != digests[file]:
                    raise UsageError(f"{file} is not the image that the recipe began with.")
        return drawing


def distilled(rewards: Iterable[str]) -> bool:
    """Return whether score distillation is one of the rewards."""
    return any(wanted(text).name == "sds" for text in rewards)


def _listed(files: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(files, str):
        return (files,) if files else ()
    return files


def digest(file: str) -> str:
    """Return the sha256 digest of an image's pixels. Raise UsageError if it cannot be read."""
    picture = images.load(Path(file))
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
