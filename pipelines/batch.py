"""Samples of text to image that are drawn together: steer, score and record them.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..clip import fingerprint
from ..errors import ClipguideWarning
from ..guidance import Steering, Step, steer, tinies
from ..guidance.decoder_names import parsed
from ..guidance.decoders import Decoder
from ..guidance.observers import ranks
from ..guidance.pipe_parts import call_signature
from ..images import to_pil
from ..objectives import Objective, Similarity, finished
from ..objectives.balanced import cosines_of_pulls
from ..recipe import Recipe
from ..views import Cutouts
from .film import Film
from .generation import recipe_options
from .jobs import Job, Settings, goal, to_draw
from .loading import made_by
from .picture import Picture
from .refine import refine

if TYPE_CHECKING:
    from .text_to_image import TextToImage


class Batch:
    """One batch.

    Args:
        owner: the object with the pipeline, the CLIPs and the rewards.
        jobs: the samples.
        settings: the settings that all samples of the run share.
    """

    def __init__(self, owner: TextToImage, jobs: Sequence[Job], settings: Settings) -> None:
        self.owner, self.jobs, self.settings = owner, jobs, settings

    def tape(self, folder: str | Path) -> Path:
        """Return where the steps are kept: a name for all that bears on them."""
        recipes = [self.recipe(i).to_json() for i in range(len(self.jobs))]
        settings = self.settings
        text = "\n".join([*recipes, str((settings.trace, settings.budget, settings.memory))])
        return Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:20]

    def draw(
        self, on_step: Callable[[Step], None] | None = None, tape: Path | None = None
    ) -> list[Picture]:
        """Draw the samples, and return them with their scores and recipes."""
        owner, settings = self.owner, self.settings
        guides = [goal(job.guide, settings.like) for job in self.jobs]
        objective = owner.objective(guides, Cutouts(number=settings.cutouts))
        objective = owner.rewards.pulling(objective, guides, settings)
        select = owner.rewards.selecting(guides, settings)
        if select is None and settings.method.prepares and self._unpulled:
            # Nothing steers a draft of a candidate, so the score of the judge counts too.
            select = objective + Similarity(owner.judge, guides, views=None, kind="dot")
        film = Film(on_step) if settings.frames else None
        image_B3HW, steering, decoder = self._steered(objective, select, film or on_step, tape)
        if settings.refine:
            image_B3HW = self._refined(image_B3HW)
        rank_B = [0.0] * len(self.jobs)
        if settings.best_of > 1:
            image_B3HW = image_B3HW.float().clamp(0, 1)
            ranking = finished(objective if select is None else select)
            rank_B = ranks(ranking, image_B3HW, len(self.jobs)).tolist()
        pictures = to_pil(image_B3HW)
        guide_scores = Similarity(owner.clip, guides, views=None).score_pictures(pictures).tolist()
        judge_scores: list[float | None] = [None] * len(self.jobs)
        if steering.judge is not None:
            judge_scores = steering.judge.score_pictures(pictures).tolist()
            if select is None and self._unpulled:
                # Guide and judge together select better than one of them, also if the guide steered
                # (`benchmarks.steering`).
                rank_B = [a + b for a, b in zip(rank_B, judge_scores, strict=True)]
        written = Batch(owner, self.jobs, self._drawn_by(decoder))
        return [
            Picture(
                image=pictures[i],
                recipe=replace(
                    written.recipe(i),
                    guide_score=guide_scores[i],
                    judge_score=judge_scores[i] or 0.0,
                ),
                guide_score=guide_scores[i],
                judge_score=judge_scores[i],
                rank=rank_B[i],
                seed=self.jobs[i].seed,
                trace=steering.report.rows(i),
                frames=film.of(i, pictures[i]) if film else (),
                eased=steering.report.eased(i),
            )
            for i in range(len(self.jobs))
        ]

    @property
    def _unpulled(self) -> bool:
        """Return whether there is a judge, and the guide alone is the objective."""
        return not (self.owner.judge is None or self.settings.rewards or self.owner.composed)

    def _steered(
        self,
        objective: Objective,
        select: Objective | None,
        on_step: Callable[[Step], None] | None,
        tape: Path | None,
    ) -> tuple[torch.Tensor, Steering, str]:
        """Return the images, the objective that steered them, and the decoder that was chosen."""
        owner, settings, jobs = self.owner, self.settings, self.jobs
        with cosines_of_pulls() as cosines, steer(
            owner.pipe,
            objective,
            method=settings.method,
            judge=owner.judge,
            select=select,
            cfg_window=settings.cfg_window,
            decoder=settings.decoder,
            tiny=settings.tiny_decoder,
            budget=settings.budget,
            memory=settings.memory,
            trace=settings.trace,
            on_step=on_step,
            tape=tape,
        ) as steering:
            image_B3HW = steering(
                prompt=[to_draw(job.prompt) for job in jobs],
                **self._negative(),
                **({"like": settings.like.map} if settings.like else {}),
                num_inference_steps=settings.steps,
                guidance_scale=settings.cfg,
                width=settings.width,
                height=settings.height,
                generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
                output_type="pt",
            ).images
            decoder = steering.decoder
        owner.rewards.tell(cosines)
        return image_B3HW, steering, decoder

    def _drawn_by(self, decoder: str) -> Settings:
        """Return the settings that draw the same images again: with the decoder that "auto" chose,
        and the name of a tiny decoder from the cache of the hub, if it was chosen."""
        settings, found = self.settings, {"decoder": decoder}
        if parsed(decoder)[0] == "tiny" and settings.tiny_decoder is None:
            found = decoding(self.owner.pipe, decoder, tinies.HUB, memory=settings.memory)
        return replace(settings, **found)

    def _negative(self) -> dict[str, object]:
        """Return the negative prompts, if this pipeline takes them."""
        takes = "negative_prompt" in call_signature(self.owner.pipe).parameters
        if not takes or self.settings.cfg <= 1:
            return {}
        return {"negative_prompt": [self.settings.negative] * len(self.jobs)}

    def _refined(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Refine each image alone, so that its bits do not depend on others. Return them."""
        owner, settings, found = self.owner, self.settings, []
        views = Cutouts(number=settings.cutouts)
        for image_3HW, job in zip(image_B3HW, self.jobs, strict=True):
            guide = goal(job.guide, settings.like)
            refined_13HW = refine(
                image_3HW[None].clamp(0, 1),
                owner.pipe.vae,
                Similarity(owner.clip, guide, views=views),
                judge=Similarity(owner.judge, guide, views=None) if owner.judge else None,
                steps=settings.refine,
                generator=torch.Generator().manual_seed(job.seed),
            )
            found.append(refined_13HW)
        return torch.cat(found)

    def recipe(self, i: int) -> Recipe:
        """Return the recipe of sample i, without its scores."""
        owner, settings, job = self.owner, self.settings, self.jobs[i]
        strength, options = recipe_options(settings.method)
        return Recipe(
            command="generate",
            prompt=job.prompt,
            guide=job.guide,
            negative=settings.negative,
            seed=job.seed,
            steps=settings.steps,
            method=settings.method.name,
            options=options,
            strength=strength,
            cfg=settings.cfg,
            width=settings.width,
            height=settings.height,
            scheduler=type(owner.pipe.scheduler).__name__,
            best_of=settings.best_of,
            **made_by(owner),
            batch_position=i,
            batch_seeds=tuple(one.seed for one in self.jobs),
            guide_score=0.0,
            judge_score=0.0,
            decoder=settings.decoder,
            tiny=settings.tiny,
            tiny_fingerprint=settings.tiny_fingerprint,
            cutouts=settings.cutouts,
            refine=settings.refine,
            rewards=owner.rewards.fingerprints(settings.rewards, settings),
            selected_by=owner.rewards.fingerprints(settings.select, settings),
            question=settings.question,
            cfg_window=",".join(f"{level:g}" for level in settings.cfg_window or ()),
            like=settings.like.files if settings.like else {},
            reader_fingerprint=settings.like.fingerprint if settings.like else "",
        )


def decoding(
    pipe: object,
    decoder: str,
    tiny: str,
    *,
    budget: float | None = None,
    memory: float | None = None,
) -> dict[str, object]:
    """Return the settings of what steering sees by.

    Raises:
        UsageError: there is no such decoder.
    """
    if tiny and parsed(decoder)[0] in ("vae", "linear"):
        warnings.warn(
            f"tiny is ignored: the decoder is {decoder}.", ClipguideWarning, stacklevel=3
        )
        tiny = ""
    limits = {"budget": budget, "memory": memory}
    loaded = Decoder(pipe, kind=decoder, tiny=tiny or None, **limits).tiny
    return {
        **limits,
        "decoder": decoder,
        "tiny": tiny,
        "tiny_fingerprint": fingerprint({"tiny": loaded}) if loaded else "",
        "tiny_decoder": loaded,
    }
