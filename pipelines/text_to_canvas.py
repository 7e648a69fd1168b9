"""Text to canvas: a loop draws an image of a prompt by gradients.

`TextToCanvas("pixels")("a red fox", seed=1)[0].image.save("fox.png")`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from torch import nn

from ..canvases.latent import tiling
from ..clip import Clip, check_clip, fingerprint, load_clip, to_dtype
from ..errors import UsageError, close_matches
from ..optimize import Step
from ..prompts import shorten
from ..recipe import Recipe
from .canvas_kinds import CANVASES
from .canvas_run import Run
from .drawing import Drawing
from .jobs import to_draw
from .loading import load_canvas_model
from .picture import Picture
from .rewarded import Rewards


class TextToCanvas:
    """Draw on a canvas by the gradient of a CLIP, and by score distillation from the embedded
    generator. The models are loaded once.

    Args:
        canvas: "pixels", "fourier", "vqgan" or "latent".
        model: the model of "vqgan" or "latent": "mini", a folder of diffusers, or for "vqgan" a
            taming checkpoint. The other canvases have none.
        clip: the guide, a name for `load_clip`.
        judge: a CLIP that scores and selects the best image. The default is mini-judge for mini,
            otherwise none.
        device: the device of all models.
        dtype: the dtype of the canvas's model. The CLIPs have float32.
        key: the API key for the server of a reward. No recipe contains it.

    Raises:
        UsageError: there is no such canvas, or it takes no model.
    """

    def __init__(
        self,
        canvas: str = "pixels",
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
            raise UsageError(
                f"The canvas {canvas} has no model: leave it out, or give a canvas that has one, "
                "vqgan or latent."
            )
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

    @property
    def encodes(self) -> bool:
        """Return whether the canvas can begin with an image."""
        return self.net is None or self.net.config.get("_quantizer") != "gumbel"

    def settled(self, drawing: Drawing) -> Drawing:
        """Return a drawing with the size, the number of sizes and the score distillation that it
        gets by default."""
        distils = self.clip.name == "mini"  # another CLIP may know what mini cannot draw
        return drawing.settled(self.canvas, encodes=self.encodes, distils=distils)

    @cached_property
    def tiling_net(self) -> nn.Module | None:
        """Return the model for images that tile."""
        return tiling(self.net) if self.net else None

    def seconds_needed(self, prompt: str, drawing: Drawing) -> tuple[float, float]:
        """Return the time before the first step, and the mean time of a step over the sizes of a
        run, in seconds.

        It times a few steps of each size, after two steps to warm up.
        """
        drawing = self.settled(drawing)
        few = replace(drawing, steps=8 * drawing.sizes, prompts_at=(), patience=None)
        begin = time.perf_counter()
        run, ends = self.start(prompt, few), []
        run.begin()
        before = time.perf_counter() - begin
        for _ in run:
            ends.append(time.perf_counter())
        a_step = sum(
            (ends[after - 1] - ends[first + 1]) / (after - first - 2)
            for _, _, first, after in run.stages
        ) / len(run.stages)
        return before, a_step

    def replay(self, recipe: Recipe, *, trust_pickle: bool = False) -> Picture:
        """Return the image that a recipe made.

        On a CPU it has the same bits if the weights, libraries and threads are the same.

        Raises:
            UsageError: an image file that the recipe names has changed.
        """
        drawing = Drawing.of(recipe, trust_pickle=trust_pickle)
        return self.start(recipe.prompt, drawing, seed=recipe.seed).finish()
