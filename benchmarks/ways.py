"""The ways of steering that `benchmarks/steering.py` measures, and the code that draws an image.

Each method has ways for several budgets. `benchmarks/steering.py` measures the cost of a way. The
ways "community" use `benchmarks/community.py`.

Shapes: 1 image, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from clipguide.pipelines.generation import CFG, CUTOUTS, STEPS
from clipguide.pipelines.text_to_image import TextToImage

from benchmarks import community
from clipguide import Cutouts, Similarity, images, steer
from clipguide.guidance import (
    Backprop,
    BestOf,
    Drafts,
    Embedding,
    Lookahead,
    Noise,
    Particles,
    Rollover,
    Shortcut,
)
from clipguide.guidance.contract import Method
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.generators import STRIDE
from clipguide.mini import CANDIDATES
from clipguide.mini import STEPS as STEPS_OF_MINI
from clipguide.mini.pipeline import MiniPipeline

VIEWS = Cutouts()
WHOLE = Cutouts(number=0)  # the image alone
EARLY, LATE = (0.5, 1.0), (0.0, 0.5)  # halves of the noise levels


@dataclass(frozen=True)
class Way:
    """One setting of a method, drawn with seeds 0 … seeds − 1.

    `method` is a method of guidance, the scale of the community's method, or None for no method.
    `best_of` has the sizes of the groups of images of which the best is kept, by guide and judge
    together. With `by_command`, the command's own code draws: in batches, with `candidates` of each
    image, and with drafts that guide and judge select.
    """

    name: str
    method: Method | float | None
    seeds: int = 4
    best_of: tuple[int, ...] = (1,)
    views: Cutouts = VIEWS
    decoder: str = "vae"
    judged: bool = False  # whether mini's judge can weaken and stop the steering
    steps: int = STEPS
    by_command: bool = False
    candidates: int = 1

    @property
    def idle(self) -> bool:
        """Return whether nothing steers."""
        return self.method is None


PLAIN = Way("plain", None, 16, (1, 2, 4, 8))
DEFAULT = Way("default", None, steps=STEPS_OF_MINI, by_command=True, candidates=CANDIDATES)


def by_both(number: int) -> Way:
    """Return the way of `clipguide generate --best-of NUMBER`."""
    name = f"{STEPS_OF_MINI} steps, best of {number} by both"
    return Way(name, None, steps=STEPS_OF_MINI, by_command=True, candidates=number)


def few(
    method: Method | None, name: str, seeds: int = 4, best_of: tuple[int, ...] = (1, 2)
) -> Way:
    """Return a way that draws in as many steps as mini by default."""
    return Way(f"{STEPS_OF_MINI} steps{name}", method, seeds, best_of, steps=STEPS_OF_MINI)


def sparing(name: str, **options: object) -> Way:
    """Return a way with a shortcut that sees the whole image, decoded by the linear map.

    This is the cheapest kind of shortcut.
    """
    return Way(f"sparing {name}", Shortcut(**options), 4, (1, 2, 4), WHOLE, "linear")


WAYS = (
    PLAIN,
    DEFAULT,
    by_both(2),
    by_both(8),
    by_both(16),
    few(None, "", 16, (1, 2, 4, 8, 16)),
    few(Shortcut(strength=0.5), ", shortcut 0.5"),
    few(Shortcut(strength=0.5, every=3), ", shortcut 0.5, every 3"),
    Way("pruned 4", BestOf(number=4, finish=1, look=0.25)),
    Way("pruned 8", BestOf(number=8, finish=1, look=0.3)),
    sparing("0.5, every 3", strength=0.5, every=3),
    sparing("1", strength=1.0),
    Way("linear 0.2", Shortcut(), 4, (1, 2), decoder="linear"),
    Way("linear 1", Shortcut(strength=1.0), 4, (1, 2), decoder="linear"),
    Way("whole 0.5", Shortcut(strength=0.5), 4, (1, 2), WHOLE),
    Way("shortcut 0.2", Shortcut(), 4, (1, 2)),
    Way("shortcut 0.5", Shortcut(strength=0.5), 4, (1, 2)),
    Way("shortcut 0.2, every 3", Shortcut(every=3), 4, (1, 2)),
    Way("shortcut 0.5, every 2", Shortcut(strength=0.5, every=2), 4, (1, 2)),
    Way("shortcut 0.5, every 3", Shortcut(strength=0.5, every=3), 4, (1, 2)),
    Way("shortcut 0.5, every 4", Shortcut(strength=0.5, every=4), 4, (1, 2)),
    Way("shortcut 1, every 4", Shortcut(strength=1.0, every=4), 4, (1, 2)),
    Way("shortcut 0.5, early", Shortcut(strength=0.5, window=EARLY)),
    Way("shortcut 0.5, late", Shortcut(strength=0.5, window=LATE), 4, (1, 2)),
    Way("shortcut 0.2, judged", Shortcut(), judged=True),
    Way("shortcut 1", Shortcut(strength=1.0)),
    Way("shortcut 1, judged", Shortcut(strength=1.0), judged=True),
    Way("particles 2", Particles(number=2)),
    Way("particles 4", Particles(number=4)),
    Way("rollover 2", Rollover(quota=2)),
    Way("rollover 4", Rollover(quota=4)),
    Way("rollover 2, pulled", Rollover(quota=2, strength=0.2)),
    Way("lookahead 4", Lookahead(), 4, (1, 2)),
    Way("lookahead 16", Lookahead(number=16, steps=5), 4, (1, 2)),
    Way("backprop 0.2", Backprop()),
    Way("backprop 0.5, every 3", Backprop(strength=0.5, every=3), 4, (1, 2)),
    Way("embedding", Embedding(every=3)),
    Way("null embedding", Embedding(of="null", every=3)),
    Way("drafts", Drafts(), steps=STEPS_OF_MINI, by_command=True),
    Way("drafts, 8 updates", Drafts(iterations=8), steps=STEPS_OF_MINI, by_command=True),
    Way("drafts, 1 update", Drafts(iterations=1), steps=STEPS_OF_MINI, by_command=True),
    Way("6 steps, noise", Noise(iterations=4), steps=6),
    Way("10 steps, noise", Noise(iterations=4), steps=10),
    Way("community 100", 100.0),
    Way("community 1000", 1000.0),
)


def draw(model: TextToImage, way: Way, prompt: str, seed: int) -> torch.Tensor:
    """Return one image of a prompt, drawn in a way with a seed.

    Returns:
        image_13HW in [0, 1].
    """
    if way.by_command:
        idle = {"best_of": way.candidates, "strength": 0.0}
        how = idle if way.idle else {"method": way.method}
        (picture,) = model(prompt, seed=seed, steps=way.steps, **how)
        return images.to_tensor([picture.image])
    generator = [torch.Generator().manual_seed(seed)]
    settings = {
        "prompt": [prompt],
        "num_inference_steps": way.steps,
        "guidance_scale": CFG,
        "generator": generator,
    }
    if isinstance(way.method, float):
        torch.manual_seed(seed)
        latents = community.sample(
            model.pipe,
            model.clip,
            settings.pop("prompt"),
            scale=way.method,
            number=len(VIEWS),
            told_first=isinstance(model.pipe, MiniPipeline),
            **settings,
        )
        with torch.no_grad():
            return Decoder(model.pipe)(latents).clamp(0, 1)
    if way.method is None:
        return model.pipe(**settings, output_type="pt").images.clamp(0, 1)
    objective = Similarity(model.clip, prompt, views=way.views)
    judge = model.judge if way.judged else None
    with steer(model.pipe, objective, method=way.method, decoder=way.decoder, judge=judge) as s:
        if isinstance(way.method, Particles):
            number = way.method.number
            settings["prompt"] = [prompt] * number
            settings["generator"] = [
                torch.Generator().manual_seed(seed + k * STRIDE) for k in range(number)
            ]
        image_B3HW = s(**settings, output_type="pt").images.clamp(0, 1)
        return image_B3HW[objective.score(image_B3HW).argmax()][None]


def settings(way: Way) -> dict:
    """Return the fields of a `Row` that say how its images were drawn.

    `auto` does not choose the judge. A method with the judge therefore counts as a method of its
    own here.
    """
    if isinstance(way.method, float):
        return {"method": "community", "options": {}, "steps": way.steps}
    if way.idle:  # the command ranks by crops too, the benchmark by the whole image
        return {"steps": way.steps, "cutouts": CUTOUTS if way.by_command else 0}
    name = way.method.name + (", judged" if way.judged else "")
    seen = {"decoder": way.decoder, "cutouts": way.views.number, "steps": way.steps}
    return {"method": name, "options": way.method.options(), **seen}
