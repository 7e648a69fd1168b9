"""The ways of steering that `benchmarks/steering.py` draws, and how an image is drawn in one.

Each method has ways for several budgets; what a way costs is measured, not said here. The
community's rows are `benchmarks/community.py`.

Shapes: 1 image, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from clipguide.pipelines.generation import CFG, STEPS
from clipguide.pipelines.text_to_image import TextToImage

from benchmarks import community
from clipguide import Cutouts, Similarity, steer
from clipguide.guidance import (
    Backprop,
    BestOf,
    Embedding,
    Lookahead,
    Particles,
    Rollover,
    Shortcut,
)
from clipguide.guidance.contract import Method
from clipguide.guidance.decoders import Decoder

VIEWS = Cutouts()
WHOLE = Cutouts(number=0)  # the image alone
EARLY, LATE = (0.5, 1.0), (0.0, 0.5)  # halves of the noise levels


@dataclass(frozen=True)
class Way:
    """A method, the community's at a scale, or none; drawn with seeds 0 … seeds − 1. Groups of
    `best_of` of these are ranked by the guide."""

    name: str
    method: Method | float | None
    seeds: int = 4
    best_of: tuple[int, ...] = (1,)
    views: Cutouts = VIEWS
    decoder: str = "vae"
    judged: bool = False  # mini's judge may weaken the steering, and stop it


PLAIN = Way("plain", None, 16, (1, 2, 4, 8))


def sparing(name: str, **options: object) -> Way:
    """A shortcut that sees the whole image by the linear map: the cheapest there is."""
    return Way(f"sparing {name}", Shortcut(**options), 4, (1, 2, 4), WHOLE, "linear")


WAYS = (
    PLAIN,
    Way("pruned 4", BestOf(number=4, finish=1, look=0.25)),
    Way("pruned 8", BestOf(number=8, finish=1, look=0.3)),
    sparing("0.6, every 6", strength=0.6, every=6),
    sparing("0.6, every 6, early", strength=0.6, every=6, window=EARLY),
    sparing("0.3, every 3", strength=0.3, every=3),
    sparing("0.6, every 3", strength=0.6, every=3),
    sparing("0.3", strength=0.3),
    Way("whole 0.4, every 6", Shortcut(strength=0.4, every=6), 4, (1, 2), WHOLE),
    Way("whole 0.4, every 3", Shortcut(strength=0.4, every=3), 4, (1, 2, 4), WHOLE),
    Way("whole 0.2", Shortcut(strength=0.2), 4, (1, 2), WHOLE),
    Way("shortcut 0.1", Shortcut(), 4, (1, 2)),
    Way("shortcut 0.2", Shortcut(strength=0.2)),
    Way("shortcut 0.2, every 2", Shortcut(strength=0.2, every=2), 4, (1, 2)),
    Way("shortcut 0.2, early", Shortcut(strength=0.2, window=EARLY)),
    Way("shortcut 0.2, late", Shortcut(strength=0.2, window=LATE), 4, (1, 2)),
    Way("shortcut 0.1, judged", Shortcut(), judged=True),
    Way("shortcut 0.5", Shortcut(strength=0.5)),
    Way("shortcut 0.5, judged", Shortcut(strength=0.5), judged=True),
    Way("particles 2", Particles(number=2)),
    Way("particles 4", Particles(number=4)),
    Way("rollover 2", Rollover(quota=2)),
    Way("rollover 4", Rollover(quota=4)),
    Way("rollover 2, pulled", Rollover(quota=2, strength=0.1)),
    Way("lookahead 4", Lookahead(), 4, (1, 2)),
    Way("lookahead 16", Lookahead(number=16, steps=5), 4, (1, 2)),
    Way("backprop 0.1", Backprop()),
    Way("backprop 0.2, every 3", Backprop(strength=0.2, every=3), 4, (1, 2)),
    Way("embedding", Embedding(every=3)),
    Way("null embedding", Embedding(of="null", every=3)),
    Way("community 100", 100.0),
    Way("community 1000", 1000.0),
)


def draw(model: TextToImage, way: Way, prompt: str, seed: int) -> torch.Tensor:
    """image_13HW in [0, 1]."""
    generator = [torch.Generator().manual_seed(seed)]
    settings = {
        "prompt": [prompt],
        "num_inference_steps": STEPS,
        "guidance_scale": CFG,
        "generator": generator,
        "output_type": "pt",
    }
    if isinstance(way.method, float):
        torch.manual_seed(seed)
        latents = community.sample(
            model.pipe,
            model.clip,
            [prompt],
            steps=STEPS,
            cfg=CFG,
            scale=way.method,
            number=len(VIEWS),
            generator=generator,
        )
        with torch.no_grad():
            return Decoder(model.pipe)(latents).clamp(0, 1)
    if way.method is None:
        return model.pipe(**settings).images.clamp(0, 1)
    objective = Similarity(model.clip, prompt, views=way.views)
    judge = model.judge if way.judged else None
    with steer(model.pipe, objective, method=way.method, decoder=way.decoder, judge=judge) as s:
        if isinstance(way.method, Particles):
            number = way.method.number
            settings["prompt"] = [prompt] * number
            settings["generator"] = [
                torch.Generator().manual_seed(seed + k * 1_000_000) for k in range(number)
            ]
        images = s(**settings).images.clamp(0, 1)
        return images[objective.score(images).argmax()][None]


def settings(way: Way) -> dict:
    """What of a row says how it was drawn, for those that are not plain."""
    if not isinstance(way.method, Method):
        return {} if way.method is None else {"method": "community", "options": {}}
    seen = {"decoder": way.decoder, "cutouts": way.views.number}
    return {"method": way.method.name, "options": way.method.options(), **seen}
