"""Text to image: a diffusers pipeline, steered by a CLIP, judged by another.

`TextToImage()("a red fox", seed=1)[0].image.save("fox.png")`

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..clip import Clip, check_clip, fingerprint, load_clip
from ..errors import ClipguideWarning, UsageError
from ..guidance import Step, steer, tinies
from ..guidance.auto import Choice, times_plain
from ..guidance.contract import Method, call_signature
from ..guidance.decoders import Decoder, parsed
from ..guidance.generators import STRIDE
from ..guidance.guides import default_clip
from ..guidance.latents import check, execution_device
from ..guidance.observers import ranks
from ..guidance.tape import Tape
from ..images import to_pil
from ..mini import known
from ..objectives import Objective, Similarity, finished
from ..objectives.balanced import cosines_of_pulls
from ..prompts import Prompt, parse
from ..recipe import Recipe
from ..views import Cutouts, Views
from .film import Film
from .generation import (
    CUTOUTS,
    Generation,
    check_numbers,
    recipe_options,
)
from .jobs import Job, Settings, auto_of, candidates_of, guides_of, to_draw
from .loading import (
    load_pipeline,
    picture_size,
    pipeline_fingerprint,
    plain_seconds,
    versions,
)
from .picture import Picture
from .refine import refine as refine_picture
from .rewarded import Rewards

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BATCH_SIZE = 8  # on a CPU 1: a batch gains little there, and alone an image is always the same

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
        dtype: the dtype of the pipeline's weights: float32, float16 or bfloat16. The CLIPs have
            float32.
        safety_checker: whether the model's safety checker is kept.
        key: the key for the address of a reward. No recipe contains it.
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
        self._rewards = Rewards(self.device, key)
        self.choice: Choice | None = None  # of the latest run, by the method "auto"
        self.chosen = Generation()  # the latest run's settings, with what was left to be chosen
        self.judge = self._loaded(judge) if judge else None

    def _loaded(self, clip: Clip | str) -> Clip:
        return clip if isinstance(clip, Clip) else load_clip(clip, device=self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 digest of the pipeline's weights."""
        return pipeline_fingerprint(self.pipe)

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
        """Return all images of `iterate`."""
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
            prompts: what to draw, in the syntax of `clipguide.prompts`.
            settings: a Generation; its defaults if None.
            on_step: a function that is called after each step of each batch.
            tapes: a folder that keeps each step. If it has steps of the same run, which was
                interrupted, these steps are not taken again.
            finished: a function that is called for each image before any is drawn, with its number
                and the recipes that it may have, one for each candidate, without scores. If it
                returns an image, that image is not drawn.
            **changes: settings of Generation by name, such as `seed=7`.

        Raises:
            UsageError: a value is out of range. Nothing was sampled.
        """
        asked = (settings or Generation()).changed(changes)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        guides = guides_of(asked.guide, prompts)
        width, height = picture_size(self.pipe, asked.size, name=self.model)
        asked = self.chosen = self._chosen(asked.usual(self.pipe, prompts), width, height)
        method, best_of, group = candidates_of(asked.configured, asked.best_of)
        recipe_options(method)  # said now, not when the first image is drawn
        method.check(self.pipe)
        if tapes is not None and asked.frames:
            raise UsageError("Frames are not kept on tapes: leave tapes or frames out.")
        if asked.negative and asked.cfg <= 1:
            warnings.warn(
                "negative is ignored: it takes a cfg above 1.", ClipguideWarning, stacklevel=2
            )
        if asked.select and best_of == 1 and method.needs_gradient:
            warnings.warn(
                "select is ignored: there is one candidate. Draw several with best_of=4 "
                "(--best-of 4).",
                ClipguideWarning,
                stacklevel=2,
            )
        if self.model == "mini":
            for said in filter(None, (known.doubt(to_draw(prompt)) for prompt in prompts)):
                warnings.warn(said, ClipguideWarning, stacklevel=2)
        resolved = self._resolved(asked, method, best_of, width, height)
        jobs = [
            Job(prompt, text, asked.seed + i + k * STRIDE)
            for prompt, text in zip(prompts, guides, strict=True)
            for i in range(asked.count)
            for k in range(best_of)
        ]
        small = getattr(type(self.pipe), "default_candidates", 1)
        most = asked.batch_size or (small if self.pipe.device.type == "cpu" else BATCH_SIZE)
        size = group if asked.exact else max(group, most // group * group)
        batches = [jobs[k : k + size] for k in range(0, len(jobs), size)]
        return self._iterate(batches, resolved, on_step, tapes, finished)

    def _chosen(self, asked: Generation, width: int, height: int) -> Generation:
        """Return the settings of "auto", or the given ones."""
        self.choice = None
        budget = times_plain(
            asked.budget, lambda: plain_seconds(self.pipe, asked.steps, asked.cfg, width, height)
        )
        if asked.method != "auto":
            return replace(asked, budget=budget)
        given = {name: getattr(asked, name) for name in ("strength", "cutouts", "decoder")}
        choice = self.choice = auto_of(budget, given, asked.best_of)
        return replace(
            asked,
            method=choice.each,
            best_of=choice.best_of,
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
            **self._decoding(
                asked.decoder or "auto", str(asked.tiny or ""), asked.budget, asked.memory
            ),
            rewards=tuple(asked.rewards),
            select=tuple(asked.select),
            question=asked.question,
            cfg_window=asked.cfg_window,
            trust_pickle=asked.trust_pickle,
            refine=asked.refine,
            trace=asked.trace,
            frames=asked.frames,
        )

    def objective(self, guides: list[Prompt], views: Views) -> Objective:
        """Return the objective of a batch: the similarity of the images to their guides.

        It also selects among candidates. A subclass may scale it or add to it. Recipes do not
        record that.
        """
        return Similarity(self.clip, guides, views=views)

    def replay(self, recipe: Recipe, *, trust_pickle: bool = False) -> Picture:
        """Return the image that a recipe made.

        It has the same bits if the weights, libraries, device and threads are the same. The models
        are those of this object, not those that the recipe names.
        """
        check_numbers(batch_size=len(recipe.batch_seeds))
        if recipe.batch_position >= len(recipe.batch_seeds):
            raise UsageError("The recipe's batch_position lies outside its batch.")
        asked = replace(Generation.of(recipe), trust_pickle=trust_pickle)
        width, height = picture_size(self.pipe, asked.size, name=self.model)
        settings = self._resolved(asked, asked.configured, asked.best_of, width, height)
        jobs = [Job(recipe.prompt, recipe.guide, seed) for seed in recipe.batch_seeds]
        return self._sample(jobs, settings, None, None)[recipe.batch_position]

    def _iterate(
        self,
        batches: Sequence[Sequence[Job]],
        settings: Settings,
        on_step: Callable[[Step], None] | None,
        tapes: str | Path | None,
        finished: Finished | None,
    ) -> Iterator[Picture]:
        """Yield the best candidate of an image once it has them all."""
        number, done = settings.best_of, {}
        if finished:
            recipes = [self._recipe(b, i, settings) for b in batches for i in range(len(b))]
            for k in range(len(recipes) // number):
                done[k] = finished(k, recipes[k * number : (k + 1) * number])
        candidates: list[Picture | None] = []
        place, used = 0, []  # of the next sample; tapes of which an image is not finished
        for batch in batches:
            after = place + len(batch)
            if all(done.get(j // number) for j in range(place, after)):
                drawn = [None] * len(batch)
            else:
                tape = self._tape(tapes, batch, settings) if tapes else None
                used += [tape] if tape else []
                drawn = self._sample(batch, settings, on_step, tape)
            for picture in drawn:
                candidates.append(picture)
                place += 1
                if len(candidates) == number:
                    best = done.get((place - 1) // number)
                    yield best or max(candidates, key=lambda candidate: candidate.rank)
                    candidates = []
            if not candidates:
                for tape in used:
                    Tape.erase(tape)
                used = []

    def _tape(self, tapes: str | Path, batch: Sequence[Job], settings: Settings) -> Path:
        """Return the folder of a batch's steps. Its name is a digest of everything that affects
        them."""
        recipes = [self._recipe(batch, i, settings).to_json() for i in range(len(batch))]
        text = "\n".join([*recipes, str((settings.trace, settings.budget, settings.memory))])
        return Path(tapes) / hashlib.sha256(text.encode()).hexdigest()[:20]

    def _decoding(
        self, decoder: str, tiny: str, budget: float | None, memory: float | None
    ) -> dict[str, object]:
        """Return the settings of the decoder for steering. Raise UsageError for an unknown decoder.
        """
        if tiny and parsed(decoder)[0] in ("vae", "linear"):
            warnings.warn(
                f"tiny is ignored: the decoder is {decoder}.", ClipguideWarning, stacklevel=3
            )
            tiny = ""
        limits = {"budget": budget, "memory": memory}
        loaded = Decoder(self.pipe, kind=decoder, tiny=tiny or None, **limits).tiny
        return {
            **limits,
            "decoder": decoder,
            "tiny": tiny,
            "tiny_fingerprint": fingerprint({"tiny": loaded}) if loaded else "",
            "tiny_decoder": loaded,
        }

    def _sample(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        on_step: Callable[[Step], None] | None,
        tape: Path | None,
    ) -> list[Picture]:
        """Draw one batch."""
        guides = [parse(job.guide) for job in jobs]
        objective = self.objective(guides, Cutouts(number=settings.cutouts))
        objective = self._rewards.pulling(objective, guides, settings)
        select = self._rewards.selecting(guides, settings)
        film = Film(on_step) if settings.frames else None
        with cosines_of_pulls() as cosines, steer(
            self.pipe,
            objective,
            method=settings.method,
            judge=self.judge,
            select=select,
            cfg_window=settings.cfg_window,
            decoder=settings.decoder,
            tiny=settings.tiny_decoder,
            budget=settings.budget,
            memory=settings.memory,
            trace=settings.trace,
            on_step=film or on_step,
            tape=tape,
        ) as steering:
            image_B3HW = steering(
                prompt=[to_draw(job.prompt) for job in jobs],
                **self._negative(settings, len(jobs)),
                num_inference_steps=settings.steps,
                guidance_scale=settings.cfg,
                width=settings.width,
                height=settings.height,
                generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
                output_type="pt",
            ).images
            settings = self._drawn_by(steering.decoder, settings)
        self._rewards.tell(cosines)
        if settings.refine:
            image_B3HW = self._refined(image_B3HW, jobs, settings)
        rank_B = [0.0] * len(jobs)
        if settings.best_of > 1:
            image_B3HW = image_B3HW.float().clamp(0, 1)
            ranking = finished(objective if select is None else select)
            rank_B = ranks(ranking, image_B3HW, len(jobs)).tolist()
        pictures = to_pil(image_B3HW)
        guide = Similarity(self.clip, guides, views=None)
        guide_scores = guide.score_pictures(pictures).tolist()
        judge_scores: list[float | None] = [None] * len(jobs)
        if steering.judge is not None:
            judge_scores = steering.judge.score_pictures(pictures).tolist()
            changed = type(self).objective is not TextToImage.objective or settings.rewards
            if settings.method.idle and select is None and not changed:
                # Nothing pulled towards the guide, so that the judge has a vote as well.
                rank_B = [a + b for a, b in zip(rank_B, judge_scores, strict=True)]
        return [
            Picture(
                image=pictures[i],
                recipe=replace(
                    self._recipe(jobs, i, settings),
                    guide_score=guide_scores[i],
                    judge_score=judge_scores[i] or 0.0,
                ),
                guide_score=guide_scores[i],
                judge_score=judge_scores[i],
                rank=rank_B[i],
                seed=jobs[i].seed,
                trace=steering.report.rows(i),
                frames=film.of(i, pictures[i]) if film else (),
                eased=steering.report.eased(i),
            )
            for i in range(len(jobs))
        ]

    def _drawn_by(self, decoder: str, settings: Settings) -> Settings:
        """Return the settings that draw the same again: with the choice of "auto" for the decoder,
        and the name of a tiny decoder from the hub's cache."""
        found = {"decoder": decoder}
        if parsed(decoder)[0] == "tiny" and settings.tiny_decoder is None:
            found = self._decoding(decoder, tinies.HUB, None, settings.memory)
        return replace(settings, **found)

    def _negative(self, settings: Settings, number: int) -> dict[str, object]:
        """Return the negative prompts, if this pipeline takes them."""
        takes = "negative_prompt" in call_signature(self.pipe).parameters
        guided = takes and settings.cfg > 1
        return {"negative_prompt": [settings.negative] * number} if guided else {}

    def _refined(
        self, image_B3HW: torch.Tensor, jobs: Sequence[Job], settings: Settings
    ) -> torch.Tensor:
        """Refine each image alone, so that its bits depend on no other."""
        views, found = Cutouts(number=settings.cutouts), []
        for image_3HW, job in zip(image_B3HW, jobs, strict=True):
            guide = parse(job.guide)
            refined_13HW = refine_picture(
                image_3HW[None].clamp(0, 1),
                self.pipe.vae,
                Similarity(self.clip, guide, views=views),
                judge=Similarity(self.judge, guide, views=None) if self.judge else None,
                steps=settings.refine,
                generator=torch.Generator().manual_seed(job.seed),
            )
            found.append(refined_13HW)
        return torch.cat(found)

    def _recipe(self, jobs: Sequence[Job], i: int, settings: Settings) -> Recipe:
        """Return the recipe of sample i of a batch, without its scores."""
        strength, options = recipe_options(settings.method)
        return Recipe(
            command="generate",
            prompt=jobs[i].prompt,
            guide=jobs[i].guide,
            negative=settings.negative,
            seed=jobs[i].seed,
            steps=settings.steps,
            method=settings.method.name,
            options=options,
            strength=strength,
            cfg=settings.cfg,
            width=settings.width,
            height=settings.height,
            scheduler=type(self.pipe.scheduler).__name__,
            best_of=settings.best_of,
            model=self.model,
            model_fingerprint=self.fingerprint,
            clip=self.clip.name,
            clip_fingerprint=self.clip.fingerprint,
            judge=self.judge.name if self.judge else "",
            judge_fingerprint=self.judge.fingerprint if self.judge else "",
            device=self.device,
            dtype=self.dtype,
            threads=torch.get_num_threads(),
            libraries=versions(),
            batch_position=i,
            batch_seeds=tuple(job.seed for job in jobs),
            guide_score=0.0,
            judge_score=0.0,
            decoder=settings.decoder,
            tiny=settings.tiny,
            tiny_fingerprint=settings.tiny_fingerprint,
            cutouts=settings.cutouts,
            refine=settings.refine,
            rewards=self._rewards.fingerprints(settings.rewards, settings),
            selected_by=self._rewards.fingerprints(settings.select, settings),
            question=settings.question,
            cfg_window=",".join(f"{level:g}" for level in settings.cfg_window or ()),
        )
