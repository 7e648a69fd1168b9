"""The run of one image on a canvas.

Shapes: B = 1 image, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..canvases import VQGAN, Canvas, Fourier, Latent, Masked, Mirrored, Pixels
from ..canvases.latent import check_sides, factor_of, recompute
from ..canvases.wrapped import check_mask
from ..errors import ClipguideError, ClipguideWarning, UsageError
from ..images import to_pil
from ..objectives import (
    InTurn,
    Near,
    Objective,
    Palette,
    Rolled,
    Scheduled,
    Similarity,
    TotalVariation,
)
from ..objectives.balanced import cosines_of_pulls
from ..optimize import Loop, Step
from ..prompts import Prompt, compose
from ..recipe import Recipe
from ..rewards import Reward
from .canvas_kinds import CANVASES
from .drawing import Drawing
from .frames import fitted, move, pale
from .jobs import to_draw
from .loading import made_by
from .picture import Picture

if TYPE_CHECKING:
    from .text_to_canvas import TextToCanvas

LARGE = 512 * 512  # from this number of pixels, the activations of a decoder are recomputed
MAX_SEED = 2**63 - 1

FAINT = 0.001  # what is left of a guide that has faded, where other terms need its size


class Run:
    """The run of one image. Iterate it to take its steps, then call `picture`.

    With `grow` above 1, the canvas grows from a fraction of its size to its full size.
    """

    def __init__(self, owner: TextToCanvas, prompt: str, drawing: Drawing, seed: int) -> None:
        to_draw(prompt)
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"The seed must be a whole number from 0 to 2⁶³ − 1, not {seed}.")
        self.owner, self.prompt, self.seed = owner, prompt, seed
        self.drawing = drawing = owner.settled(drawing)
        width, height = drawing.size
        drawing.check(owner.canvas)
        self._net = owner.tiling_net if drawing.tile else owner.net
        if self._net is not None:
            self._check_model(height, width)
        if drawing.patience is not None and not owner.judge:
            warnings.warn("patience is ignored: there is no judge.", ClipguideWarning, stacklevel=3)
        elif drawing.fade and (drawing.patience or 0) >= drawing.scores:
            warnings.warn(
                "patience stops nothing here: the judge scores only the steps after CLIP has "
                "faded. Set fade to 0 (--fade 0) for a run that can stop.",
                ClipguideWarning,
                stacklevel=3,
            )
        rate = CANVASES[owner.canvas].lr if drawing.lr is None else drawing.lr
        self.lr = rate * self._unit()
        self._start = drawing.start or CANVASES[owner.canvas].start
        self._parts = [(0, prompt), *drawing.prompts_at]
        if drawing.prompts_at and drawing.prompts_at[0][0] == 0:
            self._parts = list(drawing.prompts_at)
        prompts = [self._prompt(text) for _, text in self._parts]
        self.guide = Similarity(owner.clip, prompts[-1], views=None)
        self.judge = Similarity(owner.judge, prompts[-1], views=None) if owner.judge else None
        self._init = fitted(drawing.init, width, height) if drawing.init else None
        self._mask = fitted(drawing.mask, width, height).mean(0) if drawing.mask else None
        if self._mask is not None:
            check_mask(self._mask, height, width)
        self._options = drawing.options()
        self._objective = self._composed(prompts)
        self._has_chosen = False
        self._cosines: list[float] = []  # cosines between the gradients of guide and rewards
        self.stages = drawing.stages(factor_of(self._net) if self._net else 2)
        self._generator = torch.Generator().manual_seed(seed)
        self.index, self._stage = 0, 0
        self.loop = self._enter(0, None)

    def begin(self) -> None:
        """Let guide and judge select what the rewards choose for the seed. The first step does it
        otherwise."""
        if self._has_chosen:
            return
        self._has_chosen = True
        width, height = self.drawing.size
        for _, term in self._objective.terms():
            if isinstance(term, Reward):
                term.choose(self.seed, partial(self._score, term.prompts), (height, width))

    def _score(self, prompts: Sequence[Prompt], image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the sum of the scores by guide and judge, as for the samples of `generate`."""
        clips = filter(None, (self.owner.clip, self.owner.judge))
        return sum(Similarity(clip, prompts, views=None).score(image_B3HW) for clip in clips)

    @property
    def done(self) -> bool:
        """Return whether no step is left, or `patience` has run out."""
        return self.loop.done and self._stage == len(self.stages) - 1

    def __iter__(self) -> Iterator[Step]:
        while not self.done:
            yield self.step()

    def step(self) -> Step:
        """Take one step. Raise ClipguideError if none is left."""
        if self.done:
            raise ClipguideError("The run is done: start another.")
        self.begin()
        if self.loop.done:
            self._stage += 1
            self.loop = self._enter(self._stage, self.loop.image())
        with cosines_of_pulls() as cosines:
            step = self.loop.step()
        self._cosines += cosines
        step = replace(step, index=self.index, total=self.drawing.steps)
        self.index += 1
        moving = self.drawing.moving and self.index % self.drawing.every == 0
        if moving and not self.done:
            self.loop.set_image(move(step.image(), self.drawing))
        return step

    def finish(self, on_step: Callable[[Step], None] | None = None) -> Picture:
        """Take all remaining steps, and return the image."""
        for step in self:
            if on_step:
                on_step(step)
        return self.picture()

    def picture(self) -> Picture:
        """Return the image with the best score of the judge so far, with its scores and its recipe.
        """
        self.owner.rewards.tell(self._cosines)
        (image,) = to_pil(self.loop.best())
        guide = self.guide.score_pictures([image]).item()
        judge = self.judge.score_pictures([image]).item() if self.judge else None
        recipe = replace(self.recipe(), guide_score=guide, judge_score=judge or 0.0)
        return Picture(image, recipe, guide, judge, self.seed, [])

    def state_dict(self) -> dict:
        """Return everything that the remaining steps depend on."""
        return {"index": self.index, "stage": self._stage, "loop": self.loop.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from this state. The run must have the same settings."""
        if state["stage"] != self._stage:
            self._stage = state["stage"]
            self.loop = self._enter(self._stage, None)
        self.index = state["index"]
        self.loop.load_state_dict(state["loop"])

    def recipe(self) -> Recipe:
        """Return the recipe of the image, without its scores."""
        owner, drawing = self.owner, self.drawing
        return Recipe(
            command="optimize",
            prompt=self.prompt,
            guide=self.prompt,
            negative="",
            seed=self.seed,
            steps=drawing.steps,
            method=owner.canvas,
            options=self._options,
            strength=0.0,
            cfg=1.0,
            width=drawing.size[0],
            height=drawing.size[1],
            scheduler="Adam",
            best_of=1,
            **made_by(owner),
            batch_position=0,
            batch_seeds=(self.seed,),
            guide_score=0.0,
            judge_score=0.0,
            decoder="",
            cutouts=drawing.cutouts,
            rewards=owner.rewards.fingerprints(drawing.rewards, drawing),
            question=drawing.question,
        )

    # ------------------------------------------------------------ from settings to objects
    def _unit(self) -> float:
        """Return the unit of the learning rate: the rms of a codebook, or 1."""
        if self.owner.canvas == "vqgan":
            return self._net.quantize.embedding.weight.float().square().mean().sqrt().item()
        return 1.0

    def _check_model(self, height: int, width: int) -> None:
        """Raise UsageError for a setting that the model of the canvas does not support."""
        drawing = self.drawing
        check_sides(height, width, factor_of(self._net))
        encodes = drawing.init or drawing.sizes > 1 or drawing.moving
        if encodes and not self.owner.encodes:
            raise UsageError(
                "A Gumbel VQGAN cannot begin with an image, so it has no init, does not grow and "
                "does not move: leave these out."
            )

    def _prompt(self, text: str) -> Prompt:
        return compose(text, *self.drawing.image_parts())

    def _composed(self, prompts: Sequence[Prompt]) -> Objective:
        """Return the objective that the loop minimises."""
        drawing, last = self.drawing, max(1, self.drawing.steps - 1)
        turns = [
            (start / last, self._pull(prompt))
            for (start, _), prompt in zip(self._parts, prompts, strict=True)
        ]
        objective: Objective = turns[0][1] if len(turns) == 1 else InTurn(*turns)
        if drawing.smooth:
            objective = objective + drawing.smooth * TotalVariation()
        if drawing.tile:
            objective = Rolled(objective)
        if drawing.palette:
            objective = objective + drawing.palette_weight * Palette(drawing.palette)
        if self._init is not None and drawing.init_weight:
            objective = objective + drawing.init_weight * Near(self._init)
        return objective

    def _pull(self, prompt: Prompt) -> Objective:
        """Return the objective of the guide for a prompt, and the rewards."""
        guide: Objective = Similarity(self.owner.clip, prompt, views=self.drawing.seen())
        if fade := float(self.drawing.fade or 0):
            # The sizes of all balanced gradients scale their sum. Terms outside of it, such as a
            # palette, would outweigh it at once if the guide's was missing.
            least = FAINT if self.drawing.beside else 0
            rest = f", {least}@{fade}..1" if least and fade < 1 else ""
            guide = Scheduled(guide, f"1>{least}@0..{fade}{rest}")
        return self.owner.rewards.pulling(guide, [prompt], self.drawing)

    def _enter(self, stage: int, image_13HW: torch.Tensor | None) -> Loop:
        """Return the loop of a stage. Its canvas begins with this image, or as the settings say."""
        drawing, (height, width, first, last) = self.drawing, self.stages[stage]
        canvas = self._canvas(height, width).to(self.owner.device)
        init_13HW = None
        if self._init is not None:
            init_13HW = _resized(self._init[None], height, width).to(self.owner.device)
        if self._mask is not None:
            mask_HW = _resized(self._mask[None, None], height, width)[0, 0]
            canvas = Masked(canvas, init_13HW, mask_HW.to(self.owner.device))
        if image_13HW is not None:
            canvas.encode(_resized(image_13HW, height, width))
        elif init_13HW is not None:
            canvas.encode(init_13HW)
        elif self._start == "light" and stage == 0 and self.owner.encodes:
            canvas.encode(pale(height, width, self._generator).to(self.owner.device))
        whole, final = max(1, drawing.steps - 1), stage == len(self.stages) - 1
        return Loop(
            canvas,
            self._objective,
            steps=last - first,
            lr=self.lr,
            decay=drawing.decay if final else 1.0,
            accumulate=drawing.accumulate,
            ema=drawing.ema,
            judge=self.judge if final else None,
            judge_from=max(0, drawing.judge_from - first),
            guide=self.guide,
            score_every=drawing.score_every,
            patience=drawing.patience if final and self.judge else None,
            span=(first / whole, (last - 1) / whole),
            generators=[self._generator],
        )

    def _canvas(self, height: int, width: int) -> Canvas:
        drawing, generators = self.drawing, [self._generator]
        if self._net is not None:
            recompute(self._net, height * width >= LARGE)
        canvas: Canvas
        if make := CANVASES[self.owner.canvas].make:
            canvas = make(height, width, generators)
        elif self.owner.canvas == "vqgan":
            soft = drawing.temperature
            canvas = VQGAN(
                self._net, height, width, generators, temperature=soft, tile=drawing.tile
            )
        elif self.owner.canvas == "latent":
            canvas = Latent(self._net, height, width, generators, tile=drawing.tile)
        elif self.owner.canvas == "pixels":
            canvas = Pixels(height, width, generators, tile=drawing.tile)
        else:
            canvas = Fourier(height, width, generators)
        return Mirrored(canvas, drawing.symmetry) if drawing.symmetry else canvas


def _resized(image_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if tuple(image_BCHW.shape[-2:]) == (height, width):
        return image_BCHW
    size = (height, width)
    return nn.functional.interpolate(image_BCHW, size, mode="bilinear", antialias=True).clamp(0, 1)
