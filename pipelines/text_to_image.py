"""Text to image: a diffusers pipeline, steered by a CLIP, judged by another.

`TextToImage()("a red fox", seed=1)[0].image.save("fox.png")`

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from ..clip import Clip, fingerprint, load_clip
from ..errors import ClipguideWarning, UsageError
from ..guidance import METHODS, Step, steer
from ..guidance.auto import Choice, times_plain
from ..guidance.decoders import Decoder
from ..guidance.families import default_clip
from ..guidance.method import Method, configure
from ..guidance.tape import Tape
from ..images import to_pil
from ..objectives import Similarity
from ..prompts import check_text, parse
from ..recipe import Recipe
from ..views import Cutouts
from .film import Film
from .jobs import (
    CANDIDATE_STRIDE,
    MOST,
    Job,
    Settings,
    auto_of,
    candidates_of,
    check_numbers,
    guides_of,
    method_of,
    to_draw,
)
from .loading import load_pipeline, picture_size, pipeline_fingerprint, versions
from .picture import Picture
from .refine import refine as refine_picture

STEPS = 30
CFG = 4.0
CUTOUTS = 4
BATCH_SIZE = 8  # on a CPU 1: a batch gains little there, and alone a picture is always the same
MAX_SEED = 2**63 - 1


class TextToImage:
    """A pipeline with its guide and its judge, loaded once.

    Args:
        model: "mini", or a diffusers folder or name.
        clip: the guide, as `load_clip` names it; mini for mini, else by the table of families.
        judge: a CLIP that only scores; mini-judge for mini, else none.
        device: where all run, as torch names it.
        dtype: of the pipeline's weights: float32, float16 or bfloat16. The CLIPs are float32.
    """

    def __init__(
        self,
        *,
        model: str = "mini",
        clip: str | None = None,
        judge: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.pipe = load_pipeline(model, device=device, dtype=dtype)
        clip = default_clip(self.pipe) if clip is None else clip
        judge = "mini-judge" if judge is None and model == "mini" else judge
        self.clip: Clip = load_clip(clip, device=device)
        self.choice: Choice | None = None  # of the latest run, by the method "auto"
        self.judge: Clip | None = load_clip(judge, device=device) if judge else None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the pipeline's weights."""
        return pipeline_fingerprint(self.pipe)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        guide: str | Sequence[str] | None = None,
        negative: str = "",
        count: int = 1,
        best_of: int = 1,
        method: str | Method = "shortcut",
        strength: float | None = None,
        steps: int = STEPS,
        seed: int = 0,
        cfg: float = CFG,
        size: int | tuple[int, int] | None = None,
        budget: float | str | None = None,
        cutouts: int | None = None,
        decoder: str | None = None,
        tiny: str | Path | None = None,
        refine: int = 0,
        exact: bool = False,
        batch_size: int | None = None,
        trace: bool = False,
        frames: bool = False,
        on_step: Callable[[Step], None] | None = None,
        tapes: str | Path | None = None,
        finished: Callable[[int, Sequence[Recipe]], Picture | None] | None = None,
    ) -> list[Picture]:
        """All pictures of `iterate`."""
        return list(
            self.iterate(
                prompts,
                guide=guide,
                negative=negative,
                count=count,
                best_of=best_of,
                method=method,
                strength=strength,
                steps=steps,
                seed=seed,
                cfg=cfg,
                size=size,
                budget=budget,
                cutouts=cutouts,
                decoder=decoder,
                tiny=tiny,
                refine=refine,
                exact=exact,
                batch_size=batch_size,
                trace=trace,
                frames=frames,
                on_step=on_step,
                tapes=tapes,
                finished=finished,
            )
        )

    def iterate(
        self,
        prompts: str | Sequence[str],
        *,
        guide: str | Sequence[str] | None = None,
        negative: str = "",
        count: int = 1,
        best_of: int = 1,
        method: str | Method = "shortcut",
        strength: float | None = None,
        steps: int = STEPS,
        seed: int = 0,
        cfg: float = CFG,
        size: int | tuple[int, int] | None = None,
        budget: float | str | None = None,
        cutouts: int | None = None,
        decoder: str | None = None,
        tiny: str | Path | None = None,
        refine: int = 0,
        exact: bool = False,
        batch_size: int | None = None,
        trace: bool = False,
        frames: bool = False,
        on_step: Callable[[Step], None] | None = None,
        tapes: str | Path | None = None,
        finished: Callable[[int, Sequence[Recipe]], Picture | None] | None = None,
    ) -> Iterator[Picture]:
        """Pictures, prompt by prompt, as soon as the batch that finishes them is done.

        Args:
            prompts: what to draw, in the syntax of `clipguide.prompts`.
            guide: what the CLIP steers towards, one text for all or one a prompt; the prompt itself
                if None.
            negative: what classifier-free guidance leads away from.
            count: pictures of each prompt; the i-th has the seed `seed` + i.
            best_of: candidates of each picture, the k-th of the picture's seed + k·1,000,000; the
                one with the best guide score is kept.
            method: how to steer: a name in `guidance.METHODS`, or a configured one. Particles of a
                picture are its candidates. "auto" is the one that gains most for `budget`.
            strength: of the steering, as a fraction of rms(x0); 0 is plain sampling; the method's
                own by default.
            steps: of the sampler.
            seed: 0 … 2⁶³ − 1.
            cfg: scale of classifier-free guidance; 1 is none.
            size: side in pixels, or width and height.
            budget: of "auto": × the cost of plain sampling, from 1, or seconds a picture, as
                "30s", for which plain sampling is timed first; 4 by default.
            cutouts: crops of a picture that the guide looks at, beside the whole; 0 … 256; 4 by
                default.
            decoder: what steering sees x0 by: "auto", the default, "vae", "linear" or "tiny", as
                `steer` has it. The finished picture is always the VAE's.
            tiny: a folder of an AutoencoderTiny, or "hub", for "tiny" and "auto".
            refine: steps of the loop on each finished picture's latents; the judge decides whether
                the picture is better for them.
            exact: sample one at a time: a picture's bits do not depend on its neighbours.
            batch_size: most samples at a time; by default 8, and 1 on a CPU, where a batch would
                save about a tenth of the time, and a picture drawn alone differ from it.
            trace: score at every step, for `Picture.trace`; by default at every fifth.
            frames: keep a picture of each step in `Picture.frames`, which costs its decoding.
            on_step: called after each step of each batch.
            tapes: a folder, made if need be, that keeps each step of what is being drawn: where it
                has steps of this run, left by one that was stopped, they are not taken again.
            finished: asked for each picture, before any is drawn, by its number and the recipes
                that it may have, one a candidate, without their scores: what it gives is not drawn.

        Raises:
            UsageError: a value is out of range; nothing was sampled.
        """
        if batch_size is None:
            batch_size = 1 if self.pipe.device.type == "cpu" else BATCH_SIZE
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        guides = guides_of(guide, prompts)
        check_text(negative)
        check_numbers(count=count, best_of=best_of, steps=steps, batch_size=batch_size)
        if not 0 <= seed <= MAX_SEED - best_of * CANDIDATE_STRIDE - count:
            raise UsageError(f"The seed must be a whole number from 0 to about 2⁶³, not {seed}.")
        if not abs(cfg) < 1000:
            raise UsageError(f"The scale of classifier-free guidance cannot be {cfg}.")
        width, height = picture_size(self.pipe, size, name=self.model)
        self.choice = None
        if method == "auto":
            given = {"strength": strength, "cutouts": cutouts, "decoder": decoder}
            budget = times_plain(budget, lambda: self._plain_seconds(steps, cfg, width, height))
            self.choice = auto_of(budget, given, best_of)
            method, best_of = self.choice.each, self.choice.best_of
            strength, cutouts, decoder = None, self.choice.cutouts, self.choice.decoder
        elif budget is not None:
            raise UsageError("A budget is for the method auto, which chooses by it.")
        method, best_of, group = candidates_of(
            configure(METHODS, method, {"strength": strength}), best_of
        )
        method.check(self.pipe)
        cutouts = CUTOUTS if cutouts is None else cutouts
        if not 0 <= cutouts <= 256:
            raise UsageError(f"cutouts must be from 0 to 256, not {cutouts}.")
        if not 0 <= refine <= MOST:
            raise UsageError(f"refine must be from 0 to {MOST}, not {refine}.")
        if tapes is not None and frames:
            raise UsageError("Frames are not kept on tapes: leave tapes or frames out.")
        if negative and cfg <= 1:
            warnings.warn(
                "negative is ignored: it takes a cfg above 1.", ClipguideWarning, stacklevel=2
            )
        settings = Settings(
            negative=negative,
            best_of=best_of,
            method=method,
            steps=steps,
            cfg=cfg,
            width=width,
            height=height,
            cutouts=cutouts,
            **self._decoding(decoder or "auto", "" if tiny is None else str(tiny)),
            refine=refine,
            trace=trace,
            frames=frames,
        )
        jobs = [
            Job(prompt, text, seed + i + k * CANDIDATE_STRIDE)
            for prompt, text in zip(prompts, guides, strict=True)
            for i in range(count)
            for k in range(best_of)
        ]
        batch_size = group if exact else max(group, batch_size // group * group)
        batches = [jobs[k : k + batch_size] for k in range(0, len(jobs), batch_size)]
        return self._iterate(batches, settings, on_step, tapes, finished)

    def replay(self, recipe: Recipe) -> Picture:
        """The picture that a recipe made, with the same bits where weights, libraries, device and
        threads are the same. The recipe's models are not looked at: this object's are used."""
        check_numbers(steps=recipe.steps, batch_size=len(recipe.batch_seeds))
        if recipe.batch_position >= len(recipe.batch_seeds):
            raise UsageError("The recipe's batch_position lies outside its batch.")
        width, height = picture_size(self.pipe, (recipe.width, recipe.height), name=self.model)
        settings = Settings(
            negative=recipe.negative,
            best_of=recipe.best_of,
            method=method_of(recipe),
            steps=recipe.steps,
            cfg=recipe.cfg,
            width=width,
            height=height,
            cutouts=recipe.cutouts,
            refine=recipe.refine,
            **self._decoding(recipe.decoder, recipe.tiny),
        )
        jobs = [Job(recipe.prompt, recipe.guide, seed) for seed in recipe.batch_seeds]
        return self._sample(jobs, settings, None, None)[recipe.batch_position]

    def _iterate(
        self,
        batches: Sequence[Sequence[Job]],
        settings: Settings,
        on_step: Callable[[Step], None] | None,
        tapes: str | Path | None,
        finished: Callable[[int, Sequence[Recipe]], Picture | None] | None,
    ) -> Iterator[Picture]:
        """Yield the best candidate of a picture once it has them all."""
        number, done = settings.best_of, {}
        if finished:
            recipes = [self._recipe(b, i, settings) for b in batches for i in range(len(b))]
            for k in range(len(recipes) // number):
                done[k] = finished(k, recipes[k * number : (k + 1) * number])
        candidates: list[Picture | None] = []
        place, used = 0, []  # of the next sample; tapes of which a picture is not finished
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
                    yield best or max(candidates, key=lambda candidate: candidate.guide_score)
                    candidates = []
            if not candidates:
                for tape in used:
                    Tape.erase(tape)
                used = []

    def _plain_seconds(self, steps: int, cfg: float, width: int, height: int) -> float:
        """What plain sampling of one picture takes, by runs of one and of three steps."""
        seconds = {}
        for some in (1, 1, 3):  # the first warms up
            start = time.perf_counter()
            self.pipe(
                prompt=[""],
                num_inference_steps=some,
                guidance_scale=cfg,
                width=width,
                height=height,
                generator=[torch.Generator().manual_seed(0)],
                output_type="pt",
            )
            seconds[some] = time.perf_counter() - start
        return seconds[1] + (steps - 1) * (seconds[3] - seconds[1]) / 2

    def _tape(self, tapes: str | Path, batch: Sequence[Job], settings: Settings) -> Path:
        """Where a batch's steps are kept: a name for all that bears on them."""
        recipes = [self._recipe(batch, i, settings).to_json() for i in range(len(batch))]
        text = "\n".join([*recipes, str(settings.trace)])
        return Path(tapes) / hashlib.sha256(text.encode()).hexdigest()[:20]

    def _decoding(self, decoder: str, tiny: str) -> dict[str, object]:
        """The settings of what steering sees by. UsageError if there is no such decoder."""
        if tiny and decoder in ("vae", "linear"):
            warnings.warn(
                f"tiny is ignored: the decoder is {decoder}.", ClipguideWarning, stacklevel=3
            )
            tiny = ""
        loaded = Decoder(self.pipe, kind=decoder, tiny=tiny or None).tiny
        return {
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
        """One batch."""
        guides = [parse(job.guide) for job in jobs]
        objective = Similarity(self.clip, guides, views=Cutouts(number=settings.cutouts))
        film = Film(on_step) if settings.frames else None
        with steer(
            self.pipe,
            objective,
            method=settings.method,
            judge=self.judge,
            decoder=settings.decoder,
            tiny=settings.tiny_decoder,
            trace=settings.trace,
            on_step=film or on_step,
            tape=tape,
        ) as steering:
            image_B3HW = steering(
                prompt=[to_draw(job.prompt) for job in jobs],
                negative_prompt=[settings.negative] * len(jobs) if settings.cfg > 1 else None,
                num_inference_steps=settings.steps,
                guidance_scale=settings.cfg,
                width=settings.width,
                height=settings.height,
                generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
                output_type="pt",
            ).images
        if settings.refine:
            image_B3HW = self._refined(image_B3HW, jobs, settings)
        pictures = to_pil(image_B3HW)
        guide_scores = objective.score_pictures(pictures).tolist()
        judge_scores: list[float | None] = [None] * len(jobs)
        if steering.judge is not None:
            judge_scores = steering.judge.score_pictures(pictures).tolist()
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
                seed=jobs[i].seed,
                trace=steering.report.rows(i),
                frames=film.of(i, pictures[i]) if film else (),
            )
            for i in range(len(jobs))
        ]

    def _refined(
        self, image_B3HW: torch.Tensor, jobs: Sequence[Job], settings: Settings
    ) -> torch.Tensor:
        """Each picture by itself, so that its bits depend on no other."""
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
        """Of sample i of a batch, without its scores."""
        return Recipe(
            command="generate",
            prompt=jobs[i].prompt,
            guide=jobs[i].guide,
            negative=settings.negative,
            seed=jobs[i].seed,
            steps=settings.steps,
            method=settings.method.name,
            options={
                name: json.dumps(value)
                for name, value in settings.method.options().items()
                if name != "strength"
            },
            strength=getattr(settings.method, "strength", 0.0),
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
        )
