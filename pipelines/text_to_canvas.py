"""Text to canvas: a loop draws an image of a prompt by CLIP's gradient alone.

`TextToCanvas("vqgan")("a red fox", seed=1)[0].image.save("fox.png")`

Shapes: B = 1 image, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from ..canvases import VQGAN, Canvas, Fourier, Latent, Masked, Mirrored, Pixels
from ..canvases.latent import check_sides, factor_of, recompute, tiling
from ..canvases.wrapped import check_mask
from ..clip import Clip, check_clip, fingerprint, load_clip, to_dtype
from ..errors import ClipguideError, ClipguideWarning, UsageError, close_matches
from ..images import to_pil
from ..objectives import InTurn, Near, Objective, Palette, Rolled, Similarity, TotalVariation
from ..objectives.balanced import cosines_of_pulls
from ..optimize import Loop, Step
from ..prompts import Prompt, compose, shorten
from ..recipe import Recipe
from .drawing import CANVASES, Drawing, fitted, move, pale
from .jobs import to_draw
from .loading import load_canvas_model, versions
from .picture import Picture
from .rewarded import Rewards

NATIVE = 128  # pixels a side of the embedded models
LARGE = 512 * 512  # pixels from which a decoder's activations are not kept
MAX_SEED = 2**63 - 1


class TextToCanvas:
    """A canvas with its guide and its judge. The models are loaded once.

    Args:
        canvas: "vqgan", "latent", "fourier" or "pixels".
        model: the model of "vqgan" or "latent": "mini", a folder of diffusers, or for "vqgan" a
            taming checkpoint. The other canvases have none.
        clip: the guide, a name for `load_clip`.
        judge: a CLIP that scores and selects the best image. The default is mini-judge for mini,
            otherwise none.
        device: the device of all models.
        dtype: the dtype of the canvas's model. The CLIPs have float32.
        key: the key for the address of a reward. No recipe contains it.

    Raises:
        UsageError: there is no such canvas, or it takes no model.
    """

    def __init__(
        self,
        canvas: str = "vqgan",
        *,
        model: str | None = None,
        clip: str = "mini",
        judge: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        key: str = "",
    ) -> None:
        if canvas not in CANVASES:
            near = close_matches(canvas, CANVASES)
            raise UsageError(f"There is no canvas {shorten(canvas)!r}.{near}")
        to_dtype(dtype)
        for name in filter(None, (clip, judge)):  # before anything is loaded
            check_clip(name)
        if model is not None and not CANVASES[canvas].model:
            raise UsageError(f"The canvas {canvas} has no model: leave it out.")
        self.canvas, self.device, self.dtype = canvas, device, dtype
        self.model = model or ("mini" if CANVASES[canvas].model else "")
        self.net: nn.Module | None = None
        if self.model:
            self.net = load_canvas_model(canvas, self.model, device=device, dtype=dtype)
        self.clip: Clip = load_clip(clip, device=device)
        judge = "mini-judge" if judge is None and clip == "mini" else judge
        self.judge: Clip | None = load_clip(judge, device=device) if judge else None
        self.rewards = Rewards(device, key)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 digest of the model's weights, or "" without a model."""
        return fingerprint({"canvas": self.net}) if self.net else ""

    def __call__(
        self,
        prompts: str | Sequence[str],
        drawing: Drawing = Drawing(),  # noqa: B008 (frozen)
        *,
        count: int = 1,
        seed: int = 0,
        on_step: Callable[[Step], None] | None = None,
    ) -> list[Picture]:
        """Return `count` images of each prompt, with the seeds `seed`, `seed` + 1, … They are drawn
        one by one, so that the bits of one do not depend on the others.

        Raises:
            UsageError: a setting is out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for prompt in prompts:
            to_draw(prompt)
        return [
            self.start(prompt, drawing, seed=seed + i).finish(on_step)
            for prompt in prompts
            for i in range(count)
        ]

    def start(self, prompt: str, drawing: Drawing, *, seed: int = 0) -> Run:
        """Return the run of one image, which you iterate. It can save and load its state."""
        return Run(self, prompt, drawing, seed)

    @cached_property
    def tiling_net(self) -> nn.Module | None:
        """Return the model for images that tile."""
        return tiling(self.net) if self.net else None

    def seconds_a_step(self, prompt: str, drawing: Drawing) -> float:
        """Return the mean time of a step in seconds, over the sizes of a run.

        It times a few steps of each size, after two steps to warm up.
        """
        few = replace(drawing, steps=8 * drawing.grow, prompts_at=(), patience=None)
        run, ends = self.start(prompt, few), []
        for _ in run:
            ends.append(time.perf_counter())
        return sum(
            (ends[after - 1] - ends[first + 1]) / (after - first - 2)
            for _, _, first, after in run.stages
        ) / len(run.stages)

    def replay(self, recipe: Recipe, *, trust_pickle: bool = False) -> Picture:
        """Return the image that a recipe made.

        On a CPU it has the same bits if the weights, libraries and threads are the same.

        Raises:
            UsageError: an image file that the recipe names has changed.
        """
        drawing = Drawing.of(recipe, trust_pickle=trust_pickle)
        return self.start(recipe.prompt, drawing, seed=recipe.seed).finish()


class Run:
    """The run of one image. Iterate it for its steps, then call `picture()`.

    Its canvas can grow from a fraction of its size to all of it.
    """

    def __init__(self, owner: TextToCanvas, prompt: str, drawing: Drawing, seed: int) -> None:
        to_draw(prompt)
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"The seed must be a whole number from 0 to 2⁶³ − 1, not {seed}.")
        self.owner, self.prompt, self.seed = owner, prompt, seed
        width, height = drawing.size or (NATIVE, NATIVE)
        self.drawing = drawing = replace(drawing, size=(width, height))
        drawing.check(owner.canvas)
        self._net = owner.tiling_net if drawing.tile else owner.net
        if self._net is not None:
            self._check_model(height, width)
        if drawing.patience is not None and not owner.judge:
            warnings.warn("patience is ignored: there is no judge.", ClipguideWarning, stacklevel=3)
        rate = CANVASES[owner.canvas].lr if drawing.lr is None else drawing.lr
        self.lr = rate * self._unit()
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
        self._cosines: list[float] = []  # of the pulls of guide and rewards
        self.stages = drawing.stages(factor_of(self._net) if self._net else 2)
        self._generator = torch.Generator().manual_seed(seed)
        self.index, self._stage = 0, 0
        self.loop = self._enter(0, None)

    @property
    def done(self) -> bool:
        """Return whether no step is left, or patience has run out."""
        return self.loop.done and self._stage == len(self.stages) - 1

    def __iter__(self) -> Iterator[Step]:
        while not self.done:
            yield self.step()

    def step(self) -> Step:
        """Take one step. Raise ClipguideError if none is left."""
        if self.done:
            raise ClipguideError("The run is done: start another.")
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
        """Return the image with the judge's best score so far, with its scores and its recipe."""
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
        """Continue from a state. The run must have been made with the same arguments."""
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
            model=owner.model,
            model_fingerprint=owner.fingerprint,
            clip=owner.clip.name,
            clip_fingerprint=owner.clip.fingerprint,
            judge=owner.judge.name if owner.judge else "",
            judge_fingerprint=owner.judge.fingerprint if owner.judge else "",
            device=owner.device,
            dtype=owner.dtype,
            threads=torch.get_num_threads(),
            libraries=versions(),
            batch_position=0,
            batch_seeds=(self.seed,),
            guide_score=0.0,
            judge_score=0.0,
            decoder="",
            cutouts=drawing.cutouts,
            rewards=owner.rewards.fingerprints(drawing.rewards, drawing),
            question=drawing.question,
        )

    # ------------------------------------------------------------ what is made of the settings
    def _unit(self) -> float:
        """Return the unit of the learning rate: the rms of a codebook, or the deviation of latents.
        """
        if self.owner.canvas == "vqgan":
            return self._net.quantize.embedding.weight.float().square().mean().sqrt().item()
        if self.owner.canvas == "latent":
            return 1 / (self._net.config.get("scaling_factor") or 1.0)
        return 1.0

    @property
    def _encodes(self) -> bool:
        """Return whether the canvas can start with an image."""
        return self._net is None or self._net.config.get("_quantizer") != "gumbel"

    def _check_model(self, height: int, width: int) -> None:
        """Raise UsageError for what the model of the canvas cannot do."""
        drawing = self.drawing
        check_sides(height, width, factor_of(self._net))
        encodes = drawing.init or drawing.grow > 1 or drawing.moving
        if encodes and not self._encodes:
            raise UsageError(
                "A Gumbel VQGAN cannot begin with an image, so it has no init, does not grow and "
                "does not move: leave these out."
            )

    def _prompt(self, text: str) -> Prompt:
        return compose(text, *self.drawing.image_parts())

    def _composed(self, prompts: Sequence[Prompt]) -> Objective:
        """Return the objective of the loop."""
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
        guide = Similarity(self.owner.clip, prompt, views=self.drawing.seen())
        return self.owner.rewards.pulling(guide, [prompt], self.drawing)

    def _enter(self, stage: int, image_13HW: torch.Tensor | None) -> Loop:
        """Return the loop of a stage. Its canvas starts with that image, or as the settings say."""
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
        elif drawing.start == "light" and stage == 0 and self._encodes:
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
