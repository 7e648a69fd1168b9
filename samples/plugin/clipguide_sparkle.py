"""A plug-in of one file: a method, an objective, a reward, a pipeline, a scheduler and a canvas.

After `pip install --no-deps samples/plugin`, clipguide knows them, as in
`clipguide generate "a red fox" --method sparkle --reward darkness:0.5`.

Shapes: B images, 3 channels of H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import clipguide
from clipguide.canvases import Pixels
from clipguide.guidance import Method, Outcome


@clipguide.register_method
@dataclass(frozen=True, kw_only=True)
class Sparkle(Method):
    """Move each element of x0 by `size`, against the sign of the gradient."""

    name: ClassVar[str] = "sparkle"

    size: float = 0.02

    def start(self, run):
        def act(at):
            seen = run.gradient(at.x0)
            delta = -self.size * seen.value.sign()
            return Outcome(
                at.level.move(at.model_output, delta),
                at.sample,
                image_N3HW=seen.image_N3HW,
                loss_B=seen.loss_B,
                delta=delta,
            )

        return act


class Dark(clipguide.Objective):
    """Return the mean brightness of each image: the darker, the better."""

    def __call__(self, image_B3HW, generators=None):
        return image_B3HW.flatten(1).mean(1)


clipguide.register_objective("dark", Dark)
clipguide.register_reward(
    "darkness",
    lambda settings: lambda prompts: Dark(),
    gradient=True,
    reads=False,
    default="-",  # what `load` gets as `where`: there is nothing to load
)
clipguide.register_family("SparklePipeline", like="StableDiffusionPipeline")
clipguide.register_scheduler("SparkleScheduler", like="DDIMScheduler")
clipguide.register_canvas("sparkle", lambda height, width, generators: Pixels(
    height, width, generators
))
