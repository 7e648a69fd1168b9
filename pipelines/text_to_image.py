"""Text to image: a diffusers pipeline, steered by a CLIP, judged by another.

`TextToImage()("a red fox", seed=1)[0].image.save("fox.png")`

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from ..clip import Clip, fingerprint, load_clip
from ..errors import ClipguideWarning, UsageError
from ..guidance import METHODS, BestOf, Particles, Shortcut, Step, steer
from ..guidance.decoders import Decoder, load_tiny
from ..guidance.families import default_clip
from ..guidance.method import Method, configure
from ..images import to_pil
from ..objectives import Similarity
from ..prompts import Prompt, check_text, parse, shorten
from ..recipe import Recipe
from .film import Film
from .loading import load_pipeline, picture_size, pipeline_fingerprint, versions

STEPS = 30
CFG = 4.0
BATCH_SIZE = 8  # on a CPU 1: a batch gains little there, and alone a picture is always the same
MOST = 1000  # pictures of a prompt, candidates of a picture, steps
CANDIDATE_STRIDE = 1_000_000  # candidate k of the picture of seed s has the seed s + k·stride
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Picture:
    """A picture, how it was made, its cosines with the guide's text, for guide and judge, what
    steering saw at each step, as `Report.rows` has it, and if they were asked for the `frames`: a
    picture for each step of what its x0 decodes to, the last of them the finished one."""

    image: Image.Image
    recipe: Recipe
    guide_score: float
    judge_score: float | None
    seed: int
    trace: list[dict[str, float]]
    frames: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One sample to draw."""

    prompt: str
    guide: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What all samples of a run share."""

    negative: str
    best_of: int
    method: Method
    steps: int
    cfg: float
    width: int
    height: int
    decoder: str
    tiny: str
    tiny_fingerprint: str
    tiny_decoder: torch.nn.Module | None
    trace: bool = False
    frames: bool = False


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
        decoder: str = "vae",
        tiny: str | Path | None = None,
        exact: bool = False,
        batch_size: int | None = None,
        trace: bool = False,
        frames: bool = False,
        on_step: Callable[[Step], None] | None = None,
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
                decoder=decoder,
                tiny=tiny,
                exact=exact,
                batch_size=batch_size,
                trace=trace,
                frames=frames,
                on_step=on_step,
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
        decoder: str = "vae",
        tiny: str | Path | None = None,
        exact: bool = False,
        batch_size: int | None = None,
        trace: bool = False,
        frames: bool = False,
        on_step: Callable[[Step], None] | None = None,
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
                picture are its candidates.
            strength: of the steering, as a fraction of rms(x0); 0 is plain sampling; the method's
                own by default.
            steps: of the sampler.
            seed: 0 … 2⁶³ − 1.
            cfg: scale of classifier-free guidance; 1 is none.
            size: side in pixels, or width and height.
            decoder: what steering sees x0 by: "vae", "linear", "tiny" or "auto", as `steer` has it.
                The finished picture is always the VAE's.
            tiny: a folder of an AutoencoderTiny, for "tiny" and "auto".
            exact: sample one at a time: a picture's bits do not depend on its neighbours.
            batch_size: most samples at a time; by default 8, and 1 on a CPU, where a batch would
                save about a tenth of the time, and a picture drawn alone differ from it.
            trace: score at every step, for `Picture.trace`; by default at every fifth.
            frames: keep a picture of each step in `Picture.frames`, which costs its decoding.
            on_step: called after each step of each batch.

        Raises:
            UsageError: a value is out of range; nothing was sampled.
        """
        if batch_size is None:
            batch_size = 1 if self.pipe.device.type == "cpu" else BATCH_SIZE
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        guides = _guides(guide, prompts)
        check_text(negative)
        _check_numbers(count=count, best_of=best_of, steps=steps, batch_size=batch_size)
        if not 0 <= seed <= MAX_SEED - best_of * CANDIDATE_STRIDE - count:
            raise UsageError(f"The seed must be a whole number from 0 to about 2⁶³, not {seed}.")
        if not abs(cfg) < 1000:
            raise UsageError(f"The scale of classifier-free guidance cannot be {cfg}.")
        method, best_of, group = _candidates(
            configure(METHODS, method, {"strength": strength}), best_of
        )
        method.check(self.pipe)
        width, height = picture_size(self.pipe, size, name=self.model)
        if negative and cfg <= 1:
            warnings.warn(
                "negative is ignored: it takes a cfg above 1.", ClipguideWarning, stacklevel=2
            )
        settings = _Settings(
            negative=negative,
            best_of=best_of,
            method=method,
            steps=steps,
            cfg=cfg,
            width=width,
            height=height,
            **self._decoding(decoder, "" if tiny is None else str(tiny)),
            trace=trace,
            frames=frames,
        )
        jobs = [
            _Job(prompt, text, seed + i + k * CANDIDATE_STRIDE)
            for prompt, text in zip(prompts, guides, strict=True)
            for i in range(count)
            for k in range(best_of)
        ]
        batch_size = group if exact else max(group, batch_size // group * group)
        return self._iterate(jobs, settings, batch_size, on_step)

    def replay(self, recipe: Recipe) -> Picture:
        """The picture that a recipe made, with the same bits where weights, libraries, device and
        threads are the same. The recipe's models are not looked at: this object's are used."""
        _check_numbers(steps=recipe.steps, batch_size=len(recipe.batch_seeds))
        if recipe.batch_position >= len(recipe.batch_seeds):
            raise UsageError("The recipe's batch_position lies outside its batch.")
        width, height = picture_size(self.pipe, (recipe.width, recipe.height), name=self.model)
        settings = _Settings(
            negative=recipe.negative,
            best_of=recipe.best_of,
            method=_method(recipe),
            steps=recipe.steps,
            cfg=recipe.cfg,
            width=width,
            height=height,
            **self._decoding(recipe.decoder, recipe.tiny),
        )
        jobs = [_Job(recipe.prompt, recipe.guide, seed) for seed in recipe.batch_seeds]
        return self._sample(jobs, settings, None)[recipe.batch_position]

    def _iterate(
        self,
        jobs: Sequence[_Job],
        settings: _Settings,
        batch_size: int,
        on_step: Callable[[Step], None] | None,
    ) -> Iterator[Picture]:
        """Sample in batches; yield the best candidate of a picture once it has them all."""
        candidates: list[Picture] = []
        for start in range(0, len(jobs), batch_size):
            for picture in self._sample(jobs[start : start + batch_size], settings, on_step):
                candidates.append(picture)
                if len(candidates) == settings.best_of:
                    yield max(candidates, key=lambda candidate: candidate.guide_score)
                    candidates = []

    def _decoding(self, decoder: str, tiny: str) -> dict[str, object]:
        """The settings of what steering sees by. UsageError if there is no such decoder."""
        if tiny and decoder in ("vae", "linear"):
            warnings.warn(
                f"tiny is ignored: the decoder is {decoder}.", ClipguideWarning, stacklevel=3
            )
            tiny = ""
        loaded = load_tiny(tiny) if tiny else None
        Decoder(self.pipe, kind=decoder, tiny=loaded)
        return {
            "decoder": decoder,
            "tiny": tiny,
            "tiny_fingerprint": fingerprint({"tiny": loaded}) if loaded else "",
            "tiny_decoder": loaded,
        }

    def _sample(
        self,
        jobs: Sequence[_Job],
        settings: _Settings,
        on_step: Callable[[Step], None] | None,
    ) -> list[Picture]:
        """One batch."""
        guides = [parse(job.guide) for job in jobs]
        objective = Similarity(self.clip, guides)
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
        ) as steering:
            image_B3HW = steering(
                prompt=[_to_draw(job.prompt) for job in jobs],
                negative_prompt=[settings.negative] * len(jobs) if settings.cfg > 1 else None,
                num_inference_steps=settings.steps,
                guidance_scale=settings.cfg,
                width=settings.width,
                height=settings.height,
                generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
                output_type="pt",
            ).images
        pictures = to_pil(image_B3HW)
        guide_scores = objective.score_pictures(pictures).tolist()
        judge_scores: list[float | None] = [None] * len(jobs)
        if steering.judge is not None:
            judge_scores = steering.judge.score_pictures(pictures).tolist()
        return [
            Picture(
                image=pictures[i],
                recipe=self._recipe(jobs, i, settings, guide_scores[i], judge_scores[i]),
                guide_score=guide_scores[i],
                judge_score=judge_scores[i],
                seed=jobs[i].seed,
                trace=steering.report.rows(i),
                frames=film.of(i, pictures[i]) if film else (),
            )
            for i in range(len(jobs))
        ]

    def _recipe(
        self,
        jobs: Sequence[_Job],
        i: int,
        settings: _Settings,
        guide_score: float,
        judge_score: float | None,
    ) -> Recipe:
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
            guide_score=guide_score,
            judge_score=0.0 if judge_score is None else judge_score,
            decoder=settings.decoder,
            tiny=settings.tiny,
            tiny_fingerprint=settings.tiny_fingerprint,
        )


def _candidates(method: Method, best_of: int) -> tuple[Method, int, int]:
    """The method, how many candidates a picture has, and how many of these are drawn together."""
    if not isinstance(method, (BestOf, Particles)):
        return method, best_of, 1
    if best_of > 1:
        raise UsageError(f"{method.name} has candidates of its own: leave best_of out.")
    if isinstance(method, BestOf):
        return Shortcut(strength=0.0), method.number, 1
    return method, method.number, method.number


def _method(recipe: Recipe) -> Method:
    """The method of a recipe. UsageError if it names one that there is not."""
    try:
        options = {name: json.loads(value) for name, value in recipe.options.items()}
        if recipe.method in METHODS and issubclass(METHODS[recipe.method], Shortcut):
            options["strength"] = recipe.strength
        return configure(METHODS, recipe.method, options)
    except (TypeError, ValueError):
        raise UsageError(f"The recipe's options of {shorten(recipe.method)} are wrong.") from None


def _guides(guide: str | Sequence[str] | None, prompts: Sequence[str]) -> list[str]:
    """One guide text a prompt. UsageError for a prompt or guide that does not parse."""
    if not prompts:
        raise UsageError("There is no prompt: say what to draw.")
    if guide is None:
        guides = list(prompts)
    else:
        guides = [guide] * len(prompts) if isinstance(guide, str) else list(guide)
    if len(guides) != len(prompts):
        raise UsageError(
            f"{len(prompts)} prompts need one guide text or as many, not {len(guides)}."
        )
    for prompt, text in zip(prompts, guides, strict=True):
        _to_draw(prompt)
        parse(text)
    return guides


def _to_draw(prompt: str) -> str:
    """What the generator is conditioned on."""
    parsed: Prompt = parse(prompt)
    if not parsed.text:
        raise UsageError(
            f"Every part of the prompt {shorten(prompt)!r} repels: say what to draw as well."
        )
    return parsed.text


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if not 1 <= value <= MOST:
            raise UsageError(f"{name} must be from 1 to {MOST}, not {value}.")
