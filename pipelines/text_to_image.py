"""Text to image: a diffusers pipeline that one CLIP steers and another one judges.

`TextToImage()("a red fox", seed=1)[0].image.save("fox.png")`

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..clip import Clip, check_clip, fingerprint, load_clip
from ..errors import ClipguideWarning, UsageError
from ..guidance import Step
from ..guidance.auto import Choice, times_plain
from ..guidance.contract import Method
from ..guidance.generators import STRIDE
from ..guidance.guides import default_clip
from ..guidance.latents import check
from ..guidance.pipe_parts import call_signature, execution_device
from ..guidance.tape import Tape
from ..mini import known
from ..mini.reader import MapReader, load_reader
from ..objectives import Objective, Similarity
from ..prompts import Prompt, shorten
from ..recipe import Recipe
from ..views import Views
from .batch import Batch, decoding
from .generation import (
    CUTOUTS,
    Generation,
    check_numbers,
    recipe_options,
)
from .jobs import Job, Like, Settings, auto_of, candidates_of, guides_of, to_draw
from .loading import (
    load_pipeline,
    picture_size,
    pipeline_fingerprint,
    plain_seconds,
)
from .picture import Picture
from .rewarded import Rewards

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BATCH_SIZE = 8  # 1 on a CPU: a batch saves little time there, and changes the bits of an image
OWN = ("mini", "mini", "mini-judge")  # generator, guide and judge

Finished = Callable[[int, Sequence[Recipe]], Picture | None]


class TextToImage:
    """A pipeline with its guide and its judge, which are loaded once.

    Args:
        model: "mini", a diffusers folder or name, or a pipeline, which is used as it is.
        clip: the guide: a Clip, or a name for `load_clip`. The default is mini for mini, otherwise
            that of the pipeline's family.
        judge: a CLIP that scores and does not steer. The default is mini-judge for mini, otherwise
            none.
        device: the device of all models, as torch names it.
        dtype: the dtype of the pipeline's weights: float32, float16 or bfloat16. The CLIPs compute
            in float32 whatever it is, unless their names say otherwise, as in "mini@:bfloat16".
            `steer` differs: next to a denoiser of 16 bits, it loads a CLIP in bfloat16.
        safety_checker: whether the model's safety checker is kept.
        key: the API key for the server of a reward. No recipe contains it.
    """

    def __init__(
        self,
        *,
        model: str | DiffusionPipeline = "mini",
        clip: Clip | str | None = None,
        judge: Clip | str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        safety_checker: bool = False,
        key: str = "",
    ) -> None:
        for name in filter(None, (clip, judge)):  # before anything is loaded
            check_clip(name)
        if isinstance(model, str):
            self.model, self.device, self.dtype = model, device, dtype
            self.pipe = load_pipeline(
                model, device=device, dtype=dtype, safety_checker=safety_checker
            )
        else:
            check(model)
            self.pipe, self.device = model, str(execution_device(model))
            self.model = str(model.config.get("_name_or_path") or type(model).__name__)
            self.dtype = str(model.dtype).removeprefix("torch.")
        clip = default_clip(self.pipe) if clip is None else clip
        judge = "mini-judge" if judge is None and model == "mini" else judge
        self.clip = self._loaded(clip)
        self.rewards = Rewards(self.device, key)
        self.choice: Choice | None = None  # of the latest run, by the method "auto"
        self.chosen = Generation()  # the settings of the latest run, with all choices made
        self.judge = self._loaded(judge) if judge else None

    def _loaded(self, clip: Clip | str) -> Clip:
        return clip if isinstance(clip, Clip) else load_clip(clip, device=self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 digest of the pipeline's weights."""
        return pipeline_fingerprint(self.pipe)

    @cached_property
    def reader(self) -> tuple[MapReader, str]:
        """Return the reader of the maps of images, and the digest of its weights."""
        reader = load_reader()
        return reader, fingerprint({"reader": reader})

    def __call__(
        self,
        prompts: str | Sequence[str],
        settings: Generation | None = None,
        *,
        on_step: Callable[[Step], None] | None = None,
        tapes: str | Path | None = None,
        finished: Finished | None = None,
        **changes: object,
    ) -> list[Picture]:
        """Draw the images and return them in a list. The arguments are those of `iterate`."""
        told = {"on_step": on_step, "tapes": tapes, "finished": finished}
        return list(self.iterate(prompts, settings, **told, **changes))

    def iterate(
        self,
        prompts: str | Sequence[str],
        settings: Generation | None = None,
        *,
        on_step: Callable[[Step], None] | None = None,
        tapes: str | Path | None = None,
        finished: Finished | None = None,
        **changes: object,
    ) -> Iterator[Picture]:
        """Yield the images, prompt by prompt, as soon as their batch is done.

        Args:
            prompts: what to draw: one prompt or several. `|` separates the parts of a prompt, and
                `:number` after a part is its weight, as on the page "Get started". With `like`, a
                prompt may be empty.
            settings: a Generation; its defaults if None.
            on_step: a function that is called after each step of each batch.
            tapes: a folder to which each step is saved. If it has steps of the same run, which was
                interrupted, the run continues after them.
            finished: a function that can supply images that exist already. Before the first image
                is drawn, it is called once for each image, with the number of the image and a list
                of recipes: one for each candidate that could be kept. They have no scores yet. If
                it returns a Picture, that image is not drawn.
            **changes: fields of Generation that replace those of `settings`, such as `seed=7`.

        Raises:
            UsageError: a value is out of range. Nothing was sampled.
        """
        asked = (settings or Generation()).changed(changes)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        guides = guides_of(asked.guide, prompts, like=asked.like is not None)
        width, height = picture_size(self.pipe, asked.size, name=self.model)
        asked = self._chosen(asked, asked.usual(self.pipe, prompts), width, height)
        self.chosen = asked
        method, best_of, group = candidates_of(asked.configured, asked.best_of)
        recipe_options(method)  # an error comes now, not after the first image is drawn
        method.check(self.pipe)
        if tapes is not None and asked.frames:
            raise UsageError("Frames are not kept on tapes: leave tapes or frames out.")
        if asked.negative and asked.cfg <= 1:
            warnings.warn(
                "negative is ignored: it takes a cfg above 1.", ClipguideWarning, stacklevel=2
            )
        drafted = method.prepares and getattr(method, "number", 1) > 1  # select chooses one
        if asked.select and best_of == 1 and method.needs_gradient and not drafted:
            warnings.warn(
                "select is ignored: there is one candidate. Draw several with best_of=4 "
                "(--best-of 4).",
                ClipguideWarning,
                stacklevel=2,
            )
        if self.model == "mini":
            for text in map(to_draw, prompts):
                several = asked.like is None and self._draws_several(text)
                if said := known.doubt(text, several=several):
                    warnings.warn(said, ClipguideWarning, stacklevel=2)
        resolved = self._resolved(asked, method, best_of, width, height)
        jobs = [
            Job(prompt, text, asked.seed + i + k * STRIDE)
            for prompt, text in zip(prompts, guides, strict=True)
            for i in range(asked.count)
            for k in range(best_of)
        ]
        small = getattr(type(self.pipe), "default_batch", 1)
        most = asked.batch_size or (small if self.pipe.device.type == "cpu" else BATCH_SIZE)
        size = group if asked.exact else max(group, most // group * group)
        batches = [
            Batch(self, jobs[k : k + size], resolved) for k in range(0, len(jobs), size)
        ]
        return self._iterate(batches, on_step, tapes, finished)

    def _chosen(
        self, given: Generation, asked: Generation, width: int, height: int
    ) -> Generation:
        """Return the settings that "auto" chooses, or `asked`: the given ones with defaults."""
        self.choice = None
        budget = times_plain(
            asked.budget, lambda: plain_seconds(self.pipe, asked.steps, asked.cfg, width, height)
        )
        if asked.method != "auto":
            return replace(asked, budget=budget)
        named = {name: getattr(asked, name) for name in ("strength", "cutouts", "decoder")}
        own = given.steps is None and hasattr(type(self.pipe), "default_best_of")
        choice = self.choice = auto_of(budget, named, asked.best_of, own=own)
        return replace(
            asked,
            method=choice.each,
            best_of=choice.best_of,
            steps=choice.steps or asked.steps,
            cutouts=choice.cutouts,
            decoder=choice.decoder,
            budget=None,
        )

    def _resolved(
        self, asked: Generation, method: Method, best_of: int, width: int, height: int
    ) -> Settings:
        """Return the settings that all samples of the run share."""
        return Settings(
            negative=asked.negative,
            best_of=best_of,
            method=method,
            steps=asked.steps,
            cfg=asked.cfg,
            width=width,
            height=height,
            cutouts=CUTOUTS if asked.cutouts is None else asked.cutouts,
            **decoding(
                self.pipe,
                asked.decoder or "auto",
                str(asked.tiny or ""),
                budget=asked.budget,
                memory=asked.memory,
            ),
            rewards=tuple(asked.rewards),
            select=tuple(asked.select),
            question=asked.question,
            cfg_window=asked.cfg_window,
            trust_pickle=asked.trust_pickle,
            like=self._like(asked.like),
            refine=asked.refine,
            trace=asked.trace,
            frames=asked.frames,
        )

    def _like(self, file: str | Path | None) -> Like | None:
        """Return what the generator reads of the image file that the images are to be like.

        Raises:
            UsageError: the generator does not take maps of images.
        """
        if file is None:
            return None
        if "like" not in call_signature(self.pipe).parameters:
            raise UsageError(
                f"like (--like) is for the embedded generator: leave it out, or use the model mini "
                f"in place of {shorten(self.model)}."
            )
        return Like.read(file, *self.reader)

    def objective(self, guides: list[Prompt], views: Views) -> Objective:
        """Return the objective of a batch: the similarity of the images to their guides.

        It also selects among candidates. A subclass may scale it or add to it. Recipes do not
        record that.
        """
        return Similarity(self.clip, guides, views=views)

    @property
    def composed(self) -> bool:
        """Return whether a subclass has changed the objective."""
        return type(self).objective is not TextToImage.objective

    def replay(self, recipe: Recipe, *, trust_pickle: bool = False) -> Picture:
        """Return the image that a recipe made.

        It has the same bits if the weights, libraries, device and threads are the same. The models
        are those of this object, not those that the recipe names.
        """
        check_numbers(batch_size=len(recipe.batch_seeds))
        if recipe.batch_position >= len(recipe.batch_seeds):
            raise UsageError("The recipe's batch_position lies outside its batch.")
        guides_of(recipe.guide, [recipe.prompt], like=bool(recipe.like))
        asked = replace(Generation.of(recipe), trust_pickle=trust_pickle)
        width, height = picture_size(self.pipe, asked.size, name=self.model)
        settings = self._resolved(asked, asked.configured, asked.best_of, width, height)
        jobs = [Job(recipe.prompt, recipe.guide, seed) for seed in recipe.batch_seeds]
        return Batch(self, jobs, settings).draw()[recipe.batch_position]

    def _draws_several(self, text: str) -> bool:
        """Return whether the generator draws several objects of a prompt one by one."""
        memory = getattr(self.pipe, "memory", None)
        return memory is not None and memory.names.scene(text) is not None

    def _tell_of(self, picture: Picture, settings: Settings) -> None:
        """Warn if the embedded models do not recognise an image that they made and that nothing
        steered."""
        own = (self.model, self.clip.name, self.judge and self.judge.name)
        prompt = picture.recipe.prompt
        if prompt and own == OWN and settings.method.idle and picture.recipe.guide == prompt:
            scores = picture.guide_score, picture.judge_score
            text = to_draw(prompt)
            several = settings.like is None and self._draws_several(text)
            if said := known.unlike(text, *scores, several=several):
                warnings.warn(said, ClipguideWarning, stacklevel=2)

    def _iterate(
        self,
        batches: Sequence[Batch],
        on_step: Callable[[Step], None] | None,
        tapes: str | Path | None,
        finished: Finished | None,
    ) -> Iterator[Picture]:
        """Yield the best candidate of an image once it has them all."""
        number, done = batches[0].settings.best_of, {}
        if finished:
            recipes = [batch.recipe(i) for batch in batches for i in range(len(batch.jobs))]
            for k in range(len(recipes) // number):
                done[k] = finished(k, recipes[k * number : (k + 1) * number])
        candidates: list[Picture | None] = []
        place, used = 0, []  # number of the next sample; tapes of unfinished images
        for batch in batches:
            after = place + len(batch.jobs)
            if all(done.get(j // number) for j in range(place, after)):
                drawn = [None] * len(batch.jobs)
            else:
                tape = batch.tape(tapes) if tapes else None
                used += [tape] if tape else []
                drawn = batch.draw(on_step, tape)
            for picture in drawn:
                candidates.append(picture)
                place += 1
                if len(candidates) == number:
                    best = done.get((place - 1) // number)
                    if best is None:
                        best = max(candidates, key=lambda candidate: candidate.rank)
                        self._tell_of(best, batch.settings)
                    yield best
                    candidates = []
            if not candidates:
                for tape in used:
                    Tape.erase(tape)
                used = []
